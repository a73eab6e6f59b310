"""The simulation runs, gives the same for the same seed, and what it simulates recovers."""

from tests.planning.cluster import Costs
from tests.planning.scenarios import Size, a_tenth_goes_at_once, simulate

SMALL = Size(8, slots_per_host=4, seconds=60.0)
PULLING = Size(8, slots_per_host=4, seconds=60.0, images_there=False)


def test_the_same_seed_gives_the_same_run():
    one, two = (simulate(SMALL, Costs()) for _ in range(2))
    assert (one.commands, one.full_s, one.waits) == (two.commands, two.full_s, two.waits)
    assert one.commands > 0
    assert (one.retried, one.pulls) == (0, 0)


def test_a_node_that_goes_has_its_trajectories_tried_again_and_its_image_pulled_again():
    outcome = simulate(PULLING, Costs(), a_tenth_goes_at_once)
    assert outcome.retried > 0
    assert outcome.pulls == 3
    assert outcome.recovered_s > 0
