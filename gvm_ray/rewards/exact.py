"""The strictest reward: the boxed answer to the letter. Cheap, and enough for tasks with one spelling of the answer."""

from gvm_ray.maths.final_answer import last_boxed
from gvm_ray.types import Completion, Prompt


class ExactReward:
    r"""1 if the content of the last \boxed{} equals the gold answer, spaces aside, else 0."""

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        answer = last_boxed(completion.text)
        if answer is None:
            return 0.0
        boxed_gold = last_boxed(prompt.answer)
        gold = prompt.answer if boxed_gold is None else boxed_gold
        return float(_without_spaces(answer) == _without_spaces(gold) != "")


def _without_spaces(text: str) -> str:
    return "".join(text.split())
