"""Which items come next."""

import json
from collections import Counter
from typing import Any

import pytest

from agentenv.control import BySuccess, CurriculumConfig, InOrder, ItemPool
from agentenv.errors import ConfigError

BY_SUCCESS = CurriculumConfig(type="by_success", lookahead=4, max_passes=3)


def by_success(seed: int = 0, group_size: int = 8, **more: Any) -> BySuccess:
    made = BY_SUCCESS.model_copy(update=more).build(group_size=group_size, seed=seed)
    assert isinstance(made, BySuccess)
    return made


def level(item: int) -> str:
    return ("easy", "medium", "hard")[item % 3]


class Dataset:
    def __init__(self, size: int) -> None:
        self.left = list(range(size))

    async def fetch(self) -> int | None:
        return self.left.pop(0) if self.left else None


async def drain(pool: ItemPool) -> list[Any]:
    found = []
    while (item := await pool.next()) is not None:
        found.append(item)
    return found


async def test_by_default_items_come_as_the_dataset_gives_them():
    dataset = Dataset(20)
    pool = ItemPool.from_config(CurriculumConfig(), dataset.fetch, group_size=4, seed=1)
    assert await pool.next() == 0
    assert dataset.left[0] == 1
    assert pool.held == ()
    pool.record(0, [1.0, 0.0])
    assert await drain(pool) == list(range(1, 20))
    assert not pool.skipped


def test_a_key_never_seen_and_an_even_one_weigh_most():
    curriculum = by_success()
    for _ in range(20):
        curriculum.record("easy", [1.0] * 8)
        curriculum.record("hard", [0.0] * 8)
        curriculum.record("medium", [1.0, 0.0] * 4)
    assert curriculum.weight("unseen") == curriculum.weight(None) == 1.0
    assert curriculum.weight("medium") > 0.99
    assert curriculum.weight("easy") == pytest.approx(curriculum.weight("hard"))
    assert 0.05 <= curriculum.weight("easy") < 0.3


def test_what_the_policy_learned_outweighs_what_it_could_not_do_before():
    curriculum = by_success()
    for _ in range(50):
        curriculum.record("x", [0.0] * 8)
    for _ in range(10):
        curriculum.record("x", [1.0, 0.0] * 4)
    assert 0.35 < curriculum.success_rate("x") < 0.6


def test_items_of_intermediate_difficulty_are_chosen_more_often_and_none_is_given_up():
    curriculum = by_success(floor=0.1)
    for _ in range(20):
        curriculum.record("easy", [1.0] * 8)
        curriculum.record("hard", [0.0] * 8)
        curriculum.record("medium", [1.0, 0.0] * 4)
    keys = ["easy", "medium", "hard"]
    chosen = Counter(keys[curriculum.choose(keys)] for _ in range(3000))
    assert chosen["medium"] > 2 * chosen["easy"] > 0
    assert chosen["medium"] > 2 * chosen["hard"] > 0


def test_the_same_seed_and_history_choose_the_same_and_go_on_so_after_a_restore():
    def history(curriculum: BySuccess, rounds: range) -> list[int]:
        found = []
        for n in rounds:
            found.append(curriculum.choose(["a", "b", None, "c"]))
            curriculum.record("abc"[n % 3], [float(n % 2), 0.0, 1.0])
        return found

    whole, again, other = by_success(3), by_success(3), by_success(4)
    expected = history(whole, range(100))
    assert history(again, range(50)) == expected[:50]
    resumed = by_success(3)
    resumed.restore(json.loads(json.dumps(again.state())))
    assert history(resumed, range(50, 100)) == expected[50:]
    assert history(other, range(100)) != expected


def test_memory_is_bounded_and_the_key_recorded_longest_ago_is_forgotten():
    curriculum = by_success(max_keys=3)
    for key in "abcad":
        curriculum.record(key, [0.0] * 8)
    assert [key for key, *_ in curriculum.state()["counts"]] == ["c", "a", "d"]
    small = by_success(max_keys=1)
    small.restore(curriculum.state())
    assert [key for key, *_ in small.state()["counts"]] == ["d"]


@pytest.mark.parametrize("state", [{}, {"draws": "x", "counts": []}, {"draws": 1, "counts": [3]}])
def test_a_state_of_something_else_is_refused(state: dict[str, Any]):
    with pytest.raises(ConfigError, match="by_success"):
        by_success().restore(state)


def test_in_order_has_no_state():
    curriculum = InOrder()
    curriculum.record("x", [1.0])
    curriculum.restore(curriculum.state())
    assert curriculum.state() == {}


async def test_every_item_of_a_dataset_is_chosen_or_counted_as_skipped():
    curriculum = by_success()
    for _ in range(20):
        curriculum.record("easy", [1.0] * 8)
        curriculum.record("hard", [0.0] * 8)
    pool = ItemPool(Dataset(300).fetch, curriculum, lookahead=6, max_passes=3, key_of=level)
    chosen = await drain(pool)
    assert len(chosen) == len(set(chosen))
    assert len(chosen) + sum(pool.skipped.values()) == 300
    shares = Counter(map(level, chosen))
    assert shares["medium"] > 1.5 * max(shares["easy"], shares["hard"])
    assert pool.skipped["medium"] < min(pool.skipped["easy"], pool.skipped["hard"])


async def test_items_that_are_never_chosen_cannot_fill_the_pool():
    class NeverEasy(InOrder):
        def choose(self, keys: Any) -> int:
            return next((n for n, key in enumerate(keys) if key != "easy"), 0)

    pool = ItemPool(Dataset(90).fetch, NeverEasy(), lookahead=4, max_passes=2, key_of=level)
    for _ in range(40):
        await pool.next()
        assert len(pool.held) < 4
    assert pool.skipped["easy"] > 0


async def test_a_dataset_that_has_nothing_now_is_asked_again():
    dataset = Dataset(1)
    pool = ItemPool(dataset.fetch, by_success(), lookahead=3)
    assert await pool.next() == 0
    assert await pool.next() is None
    dataset.left = [7]
    assert await pool.next() == 7


async def test_items_are_known_by_their_id_or_by_a_function():
    by_id = ItemPool.from_config(BY_SUCCESS, Dataset(0).fetch, group_size=2, seed=0)
    by_id.record({"id": "task-1"}, [1.0, 0.0])
    assert by_id.curriculum.state()["counts"][0][0] == "task-1"
    named = BY_SUCCESS.model_copy(update={"key": f"{__name__}:level"})
    by_level = ItemPool.from_config(named, Dataset(0).fetch, group_size=2, seed=0)
    by_level.record(4, [1.0, 0.0])
    assert by_level.curriculum.state()["counts"][0][0] == "medium"


@pytest.mark.parametrize("key", ["nonsense", f"{__name__}:BY_SUCCESS", f"{__name__}:levl"])
async def test_a_key_that_is_no_function_is_refused_at_start(key: str):
    config = BY_SUCCESS.model_copy(update={"key": key})
    with pytest.raises(ConfigError, match="curriculum key"):
        ItemPool.from_config(config, Dataset(0).fetch, group_size=2, seed=0)
