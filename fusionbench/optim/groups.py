"""One learning rate for each part of a strategy, whatever the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.nn import Parameter

from fusionbench.errors import UserError, check_number, nearest

Groups = list[dict[str, Any]]
REST = "rest"


def parameter_groups(
    parameters: Iterable[Parameter],
    members: Mapping[str, Sequence[Parameter]],
    *,
    parts: dict[str, float] | None = None,
) -> list[Parameter] | Groups:
    """Return what an optimizer takes: all that is trained or, with rates for parts, a group for each part.

    A group has its part's name under ``part``; parts that no rate is given for keep the optimizer's own, and what
    belongs to no part is the group ``rest``. Parts that are frozen have no group, so a rate for one does nothing.

    Args:
        parameters: Everything that the strategy has, what is frozen included.
        members: The parameters of each part.
        parts: Learning rate of each part, by name; the schedule scales all of them alike.

    Raises:
        UserError: A rate is given for a part that the strategy does not have, or is not above 0.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not parts:
        return trained
    for name, rate in parts.items():
        if name not in members:
            raise UserError(f"the strategy has no part for 'optimizer.parts.{name}'{nearest(name, members)}")
        check_number(f"optimizer.parts.{name}", rate, above=0)
    part_of = {id(p): name for name, own in members.items() for p in own}
    grouped: dict[str, list[Parameter]] = {name: [] for name in (*members, REST)}
    for parameter in trained:
        grouped[part_of.get(id(parameter), REST)].append(parameter)
    rates = {name: {"lr": rate} for name, rate in parts.items()}
    return [{"params": own, "part": name, **rates.get(name, {})} for name, own in grouped.items() if own]
