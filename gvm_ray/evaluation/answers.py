"""What a response gives as its answer, for majority votes."""

from gvm_ray.functional.boxed import last_boxed


def final_answer(text: str) -> str | None:
    r"""The content of the last \boxed{} without spaces, so that spellings that differ in spaces vote together.

    None where the response boxes nothing: it has no vote.
    """
    answer = last_boxed(text)
    return "".join(answer.split()) if answer else None
