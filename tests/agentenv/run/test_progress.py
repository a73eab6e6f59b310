import io
import threading

from rich.console import Console, RenderableType

from agentenv.outcomes import Outcome, StopReason
from agentenv.rollout import RolloutRecord
from agentenv.run.counters import Rates, RunCounters, short_cause
from agentenv.run.panels import live_panel, plain_line, printable, summary_table
from agentenv.run.progress import LiveProgress, PlainProgress, QuietProgress, open_progress
from agentenv.types import AgentResult, AgentStep
from agentenv_backends.base import PoolStats
from agentenv_tools.schema import ToolCall

POOL = PoolStats(
    hosts=1,
    total_slots=64,
    available_slots=10,
    acquired_slots=54,
    waiting=7,
    acquired_total=99,
    lost_slots=0,
    lost_hosts=0,
)


def _scored(reward: float) -> RolloutRecord:
    step = AgentStep(1, "text", (ToolCall("terminal"), ToolCall("terminal")))
    result = AgentResult(True, "", StopReason.FINAL_ANSWER, steps=(step,), total_tokens=100)
    return RolloutRecord("t", Outcome.SCORED, StopReason.FINAL_ANSWER, reward, result)


def _failed(cause: str) -> RolloutRecord:
    return RolloutRecord(
        "t", Outcome.INFRASTRUCTURE_FAILED, StopReason.ERROR, None, None, cause=cause
    )


def _run(progress: QuietProgress) -> QuietProgress:
    """Two groups: one written, one dropped."""
    progress.started(lambda: POOL)
    for _ in range(2):
        progress.group_started()
    for record in [_scored(1.0), _scored(0.0), _failed("SlotLostError: slot 1a2b3c4d died\nmore")]:
        progress.rollout_ended(record)
    progress.group_done([1.0, 0.0])
    progress.group_failed("SlotLostError: \x1b[31mslot 7 died", dropped=True)
    progress.ended(loop_lag_p99_s=0.002)
    return progress


def _text(renderable: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(renderable)
    return out.getvalue()


def test_everything_that_happens_is_counted_once():
    summary = _run(QuietProgress(target=32)).counters.summary()
    assert summary["groups"] == {
        "written": 1,
        "target": 32,
        "with_differing_scores": 1,
        "retried": 0,
        "dropped": 1,
    }
    assert summary["trajectories"]["outcomes"] == {"scored": 2, "infrastructure_failed": 1}
    assert summary["scores"] == {"mean": 0.5, "solved_share": 0.5}
    assert (summary["sampled_tokens"], summary["tool_calls"]) == (200, 4)
    assert summary["failures"] == {"SlotLostError: slot … died": 1}
    assert summary["loop_lag_p99_s"] == 0.002


def test_a_run_without_any_result_has_no_mean_and_divides_by_nothing():
    counters = RunCounters()
    assert counters.summary()["scores"] == {"mean": None, "solved_share": None}
    assert "-" in _text(summary_table(counters))


def test_causes_that_differ_in_ids_and_numbers_are_counted_together():
    assert short_cause("E: slot 12 of host-3 died after 1.5 s") == short_cause(
        "E: slot 13 of host-4 died after 2.5 s"
    )
    assert short_cause("") == "unknown"


def test_the_number_of_causes_kept_is_bounded():
    counters = RunCounters()
    for number in range(500):
        counters.rollout_ended(_failed("cause " + "x" * number))
    assert len(counters.failures) <= 51
    assert sum(counters.failures.values()) == 500


def test_rates_are_those_of_the_last_seconds():
    now = [0.0]
    counters, rates = RunCounters(started_at=0.0), Rates(clock=lambda: now[0])
    for second in range(1, 101):
        now[0] = float(second)
        counters.tokens += 10 if second <= 50 else 30
        tokens_per_s, calls_per_s = rates.update(counters)
    assert (tokens_per_s, calls_per_s) == (30.0, 0.0)


def test_the_live_panel_and_the_plain_line_show_what_matters():
    progress = PlainProgress(Console(file=io.StringIO()), target=32)
    progress.started(lambda: POOL)
    progress.group_started()
    progress.rollout_ended(_scored(1.0))
    progress.rollout_ended(_failed("HostLostError: gone"))
    progress.group_done([1.0, 0.0])
    panel, line = _text(live_panel(progress._view())), plain_line(progress._view())
    for shown in ("1/32 groups", "54/64", "100%", "HostLostError: gone"):
        assert shown in panel
        assert shown in line
    assert "0.500" in panel  # the last group's mean


def test_the_final_table_names_drops_and_where_results_are():
    text = _text(summary_table(_run(QuietProgress(8)).counters, {"report": "runs/x/report.html"}))
    for shown in (
        "1/8",
        "2 scored, 1 infrastructure_failed",
        "runs/x/report.html",
        "dropped because",
    ):
        assert shown in text


def test_nothing_a_model_wrote_can_command_the_terminal():
    assert printable("a\x1b]52;c;x\x07\u202eb\u2028c") == "a\\x1b]52;c;x\\x07\\u202eb\\u2028c"
    text = _text(summary_table(_run(QuietProgress(8)).counters))
    assert "\x1b" not in text
    assert "\\x1b[" in text


def test_plain_progress_prints_a_last_line_and_none_when_nothing_happened():
    out = io.StringIO()
    with PlainProgress(Console(file=out, width=80), 4, interval_s=60) as progress:
        _run(progress)
    assert out.getvalue().count("\n") == 1
    assert "1/4 groups" in out.getvalue()


def test_plain_progress_says_nothing_twice():
    out = io.StringIO()
    progress = PlainProgress(Console(file=out, width=80), 4)
    _run(progress)
    shown = progress._line(-1)
    progress._line(shown)
    assert out.getvalue().count("groups ·") == 1


def test_live_progress_draws_on_a_terminal_and_leaves_no_thread():
    out = io.StringIO()
    with LiveProgress(
        Console(file=out, force_terminal=True, width=100), 4, interval_s=0.01
    ) as progress:
        _run(progress)
    assert "1/4 groups" in out.getvalue()
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_a_pool_that_cannot_be_looked_at_does_not_end_the_display():
    def broken() -> PoolStats:
        raise RuntimeError("dictionary changed size during iteration")

    progress = PlainProgress(Console(file=io.StringIO()), target=None)
    progress.started(broken)
    assert progress._view().pool is None


def test_the_display_fits_the_console():
    assert isinstance(open_progress(Console(force_terminal=True), 1), LiveProgress)
    assert isinstance(open_progress(Console(file=io.StringIO()), 1), PlainProgress)
