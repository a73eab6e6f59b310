"""Which tools an environment's settings select."""

import pytest

from agentenv_tools import (
    BashTool,
    TerminalTool,
    ToolConfigError,
    ToolRegistry,
    Toolset,
    ToolsetCatalog,
    build_registry,
    tool,
)

SANDBOX = ("terminal", "read_file", "write_file")
CODING = ("exec", "read", "write", "edit", "glob", "grep")


@tool
def lookup(word: str) -> str:
    """Look a word up."""
    return word


@pytest.mark.parametrize(
    ("enabled", "disabled", "expected"),
    [
        (["default"], [], SANDBOX),
        (["sandbox"], [], SANDBOX),
        (["filesystem"], [], ("read_file", "write_file")),
        (["terminal"], [], ("terminal",)),
        (["bash"], [], ("bash",)),
        (["bash", "default"], [], ("bash", *SANDBOX)),
        (["default", "default", "terminal"], [], SANDBOX),
        (["default"], ["terminal"], ("read_file", "write_file")),
        (["default"], ["filesystem", "terminal"], ()),
        (["full"], ["terminal_stateful"], ("read_file", "write_file", "terminal")),
        (["coding"], [], CODING),
        (
            ["all"],
            ["terminal_stateful"],
            ("read_file", "write_file", "terminal", "bash", *CODING, "editor"),
        ),
        (
            ["*"],
            ["terminal_stateful", "bash", "coding", "editor"],
            ("read_file", "write_file", "terminal"),
        ),
        (["terminal_stateful"], [], ("terminal_stateful", "tmux")),
        (["terminal_stateful"], ["tmux"], ("terminal_stateful",)),
        (["full"], ["tmux"], ("read_file", "write_file", "terminal", "terminal_stateful")),
        (["default"], ["all"], ()),
        ([], [], ()),
    ],
)
def test_enabled_toolsets_are_taken_and_disabled_ones_taken_out_again(enabled, disabled, expected):
    assert ToolsetCatalog().resolve(enabled, disabled) == expected
    assert build_registry(enabled, disabled).names() == expected


def test_an_unknown_toolset_is_refused_with_the_known_names_even_when_disabled():
    with pytest.raises(
        ToolConfigError, match=r"unknown toolset 'shell'; known: filesystem, .* all"
    ):
        build_registry(["shell"])
    with pytest.raises(ToolConfigError, match="unknown toolset 'shell'"):
        build_registry(["default"], ["shell"])


def test_text_in_place_of_a_list_is_refused():
    with pytest.raises(ToolConfigError, match="enabled_toolsets: give a list"):
        build_registry("default")


def test_a_user_adds_tools_and_toolsets_that_may_include_each_other_in_circles():
    catalog = ToolsetCatalog()
    catalog.add_tools(lookup)
    catalog.add_toolset(Toolset("words", tools=("lookup",), includes=("more",)))
    catalog.add_toolset(Toolset("more", includes=("words", "filesystem")))
    assert catalog.resolve(["words"]) == ("lookup", "read_file", "write_file")
    assert catalog.resolve(["more"]) == ("lookup", "read_file", "write_file")
    assert catalog.build(["words"], ["filesystem"]).get("lookup") is lookup
    assert "lookup" in catalog.resolve(["all"], ["terminal_stateful"])


def test_names_that_are_taken_or_lead_nowhere_are_refused():
    catalog = ToolsetCatalog()
    with pytest.raises(ToolConfigError, match="'terminal'"):
        catalog.add_tools(TerminalTool())
    with pytest.raises(ToolConfigError, match="'default' exists"):
        catalog.add_toolset(Toolset("default"))
    with pytest.raises(ToolConfigError, match="'all' exists"):
        catalog.add_toolset(Toolset("all"))
    catalog.add_toolset(Toolset("odd", tools=("nothing",)))
    with pytest.raises(ToolConfigError, match="'nothing', which does not exist"):
        catalog.resolve(["odd"])


# ---- the registry ----


def test_a_registry_keeps_order_and_refuses_doubles():
    registry = ToolRegistry([BashTool(), lookup])
    assert registry.names() == ("bash", "lookup")
    assert ("bash" in registry, "x" in registry, len(registry)) == (True, False, 2)
    assert registry.get("x") is None
    with pytest.raises(ToolConfigError, match="two tools are named 'bash'"):
        registry.register(BashTool())


@pytest.mark.parametrize("name", ["", "a b", "1a", "-a", "é", "a" * 65, "a\n"])
def test_a_name_no_model_api_takes_is_refused(name):
    with pytest.raises(ToolConfigError, match="use 1 to 64"):
        ToolRegistry([tool(name=name or " ")(lookup.function)])


def test_a_parameter_named_like_sandbox_policy_is_refused():
    @tool
    def fetch(allow_network: bool) -> None: ...

    with pytest.raises(ToolConfigError, match="'allow_network' is reserved"):
        ToolRegistry([fetch])


def test_only_available_tools_are_told_to_the_model():
    class Broken(BashTool):
        def is_available(self):
            return False, "no shell"

    registry = ToolRegistry([Broken(), lookup])
    assert [schema.name for schema in registry.schemas()] == ["lookup"]


def test_an_unknown_tool_is_answered_with_the_known_names():
    assert ToolRegistry([lookup]).unknown("look_up") == (
        "Unknown tool: look_up. Known tools: lookup"
    )
    assert ToolRegistry().unknown("a").endswith("Known tools: none")
