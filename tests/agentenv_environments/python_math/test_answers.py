from fractions import Fraction

import pytest

from agentenv_environments.python_math.answers import answer_in, is_unevaluated, number_in
from agentenv_environments.python_math.arithmetic import KINDS, make_question


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (r"So it is \boxed{4}.", "4"),
        (r"\boxed{3} no, \boxed{4}", "4"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{1 + \boxed{4}}", r"1 + \boxed{4}"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("Answer: 3\nno\nAnswer: 4.", "4"),
        ("**Answer:** $4$", "4"),
        ("Answer: 3\n\\boxed{4}", "4"),
        ("\\boxed{4}\nAnswer: 3", "4"),
        (r"\boxed{3} and \boxed{4", None),
        (r"\boxed{}", None),
        ("the answer: perhaps 4", None),
        ("4", None),
        ("", None),
    ],
)
def test_the_answer_is_the_last_box_or_else_the_last_answer_line(reply, answer):
    assert answer_in(reply) == answer


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (r"\boxed{4}" + "x" * 1_000_000, None),
        ("x" * 1_000_000 + r"\boxed{4}", "4"),
        (r"\boxed{" * 150_000 + "4" + "}" * 150_000, None),
        (r"\boxed{" + "4" * 1_000_000 + "}", None),
        (r"\boxed{4}" * 100_000, "4"),
        ("\n" * 1_000_000 + "Answer: 4", "4"),
    ],
    ids=["far behind", "at the end", "nested", "long", "many", "lines"],
)
def test_a_megabyte_is_read_in_bounds(reply, answer):
    assert answer_in(reply) == answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1,234.5", Fraction(-2469, 2)),
        ("−3", Fraction(-3)),  # noqa: RUF001
        ("3/4", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (".5", Fraction(1, 2)),
        ("3/0", None),
        ("", None),
        ("nan", None),
        ("inf", None),
        ("1e999999999", None),
        ("1,23", None),
        ("2+2", None),
    ],
)
def test_numbers_written_out_have_a_value(text, value):
    assert number_in(text) == value


@pytest.mark.parametrize("text", ["12*7", "2+2", "3-1", "2^3", r"3 \times 4", "(2)(3)", "4!"])
def test_an_operation_is_not_worked_out(text):
    assert is_unevaluated(text)


@pytest.mark.parametrize("text", ["-4", r"\frac{1}{2}", "4 apples", "x = 4", "$-3$"])
def test_a_value_is_worked_out(text):
    assert not is_unevaluated(text)


def test_questions_are_the_same_each_time_and_differ_between_splits():
    made = [make_question("train", index) for index in range(3 * len(KINDS))]
    assert made == [make_question("train", index) for index in range(3 * len(KINDS))]
    held_out = {make_question("held_out", index).question for index in range(200)}
    assert not held_out & {make_question("train", index).question for index in range(200)}
    assert all(number_in(question.answer) is not None for question in made)
