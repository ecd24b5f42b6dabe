"""What a response gives as its answer, for majority votes."""

from gvm_ray.functional import final_answer as final


def final_answer(text: str, *, truncated: bool) -> str | None:
    r"""The response's final answer, boxed or not; None where it gives none, and has no vote.

    Of a truncated response only a box counts: its last number is where it was cut.
    """
    answer = final.final_answer(text)
    return None if answer is None or (truncated and not answer.boxed) else answer.text
