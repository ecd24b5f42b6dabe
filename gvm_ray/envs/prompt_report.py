"""What became of the tasks of a source on their way to prompts: nothing is left out in silence."""

from dataclasses import dataclass

SHOWN_IDS = 5  # ids that a report line names before it says how many more there are


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """What became of the tasks of one source; loaded = kept + duplicates + overlapping + too long."""

    loaded: int
    kept: int
    duplicate_ids: tuple[str, ...] = ()  # a second task with this id or problem was dropped
    overlapping_ids: tuple[str, ...] = ()  # training only: dropped, because the evaluation has the problem too
    too_long_ids: tuple[str, ...] = ()  # dropped: more prompt tokens than prompts.max_tokens
    unparsable_answer_ids: tuple[str, ...] = ()  # kept, but only a response that spells the answer alike is right
    generous_tasks: tuple[str, ...] = ()  # of reasoning-gym, whose scorer pays for any text

    def lines(self, name: str) -> list[str]:
        """For printing: one line of counts, and one for each thing that a person may want to mend."""
        lines = [f"{name}: {self.kept} of {self.loaded} prompts"]
        for what, ids in (
            ("dropped as duplicates", self.duplicate_ids),
            ("dropped because the evaluation has them too", self.overlapping_ids),
            ("dropped as longer than prompts.max_tokens", self.too_long_ids),
            ("kept, but their gold answer can't be parsed", self.unparsable_answer_ids),
        ):
            if ids:
                more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
                lines.append(f"  {len(ids)} {what}: {', '.join(ids[:SHOWN_IDS])}{more}")
        for task in self.generous_tasks:
            lines.append(f"  warning: the scorer of reasoning-gym task {task!r} pays for any text, right or not")
        return lines


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """What became of the tasks of a run."""

    train: SourceReport
    eval: SourceReport | None = None

    def lines(self) -> list[str]:
        """For printing."""
        lines = self.train.lines("training")
        return lines if self.eval is None else lines + self.eval.lines("evaluation")
