"""What a trainer may ask of the rollouts it gets: how old, how many, which, in what order, and when not at all.

Each policy is a small object with data of its own, usable without the rest; by default each does what Atropos does.
`staleness` bounds age, `over_provision` waits for no straggler, `filters` drops groups, `curriculum` orders items,
`pause` stops while weights are exchanged.
"""

from agentenv.control.curriculum import (
    BySuccess,
    Curriculum,
    CurriculumConfig,
    InOrder,
    ItemPool,
)
from agentenv.control.filters import (
    GroupFilter,
    GroupFilterError,
    GroupFilters,
    TooLong,
    equal_scores,
    group_filters,
    load_filter,
)
from agentenv.control.over_provision import Keep, MemberChoice, OverProvision
from agentenv.control.pause import PausedTooLongError, PauseGate
from agentenv.control.staleness import StalenessLimit, Supply, oldest_version

__all__ = [
    "BySuccess",
    "Curriculum",
    "CurriculumConfig",
    "GroupFilter",
    "GroupFilterError",
    "GroupFilters",
    "InOrder",
    "ItemPool",
    "Keep",
    "MemberChoice",
    "OverProvision",
    "PauseGate",
    "PausedTooLongError",
    "StalenessLimit",
    "Supply",
    "TooLong",
    "equal_scores",
    "group_filters",
    "load_filter",
    "oldest_version",
]
