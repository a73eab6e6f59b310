"""The emulated server from the other side: everything here is done by Modal's own client, as it comes."""
# mypy: disable-error-code="no-untyped-call"

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import modal
import pytest
from modal import exception

from tests.emulators.modal.running import EmulatedModal
from tests.emulators.modal.state import MISSING_IMAGE
from tests.modal_service import needs_modal

pytestmark = [pytest.mark.sandbox, pytest.mark.slow, needs_modal]


@pytest.fixture
def server(emulated_modal: EmulatedModal, request: pytest.FixtureRequest) -> EmulatedModal:
    if request.config.getoption("--modal-live"):
        pytest.skip("about the emulated server")
    return emulated_modal


class Account:
    """A client, an app, and sandboxes that are gone in the end."""

    def __init__(self, client: Any, app: Any) -> None:
        self.client = client
        self.app = app
        self.made: list[Any] = []

    async def create(self, *command: str, image: Any = None, **options: Any) -> Any:
        values = {"timeout": 60, "app": self.app, "client": self.client, **options}
        image = image or modal.Image.from_registry("python:3.12-slim")
        sandbox = await modal.Sandbox.create.aio(*command, image=image, **values)
        self.made.append(sandbox)
        return sandbox

    async def named(self, name: str) -> Any:
        return await modal.Sandbox.from_name.aio("emulated", name, client=self.client)


@pytest.fixture
async def account(server: EmulatedModal) -> AsyncIterator[Account]:
    client = await modal.Client.from_credentials.aio(server.token_id, server.token_secret)
    app = await modal.App.lookup.aio("emulated", client=client, create_if_missing=True)
    account = Account(client, app)
    yield account
    for sandbox in account.made:
        await sandbox.terminate.aio()
        await sandbox.detach.aio()
    await client.close.aio()


async def said(sandbox: Any, *command: str, **options: Any) -> tuple[bytes, bytes, int]:
    """Standard output, standard error and exit code of a command."""
    process = await sandbox.exec.aio(*command, text=False, **options)
    out = await process.stdout.read.aio()
    return out, await process.stderr.read.aio(), await process.wait.aio()


async def test_a_command_has_streams_and_an_exit_code(account: Account):
    sandbox = await account.create()
    out = await said(sandbox, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert out == (b"out\n", b"err\n", 3)
    assert (await said(sandbox, "sh", "-c", "kill -9 $$"))[2] == 137
    assert (await said(sandbox, "pwd", workdir="/tmp"))[0] == b"/tmp\n"


async def test_output_is_read_as_it_comes_however_large(account: Account):
    sandbox = await account.create()
    process = await sandbox.exec.aio(
        "sh", "-c", "echo first; cat; head -c 20000000 /dev/zero", text=False
    )
    pieces = process.stdout.__aiter__()
    assert await anext(pieces) == b"first\n"
    process.stdin.write_eof()
    await process.stdin.drain.aio()
    assert sum([len(piece) async for piece in pieces]) == 20_000_000
    await process.wait.aio()


async def test_input_reaches_the_command(account: Account):
    sandbox = await account.create()
    process = await sandbox.exec.aio("wc", "-c", text=False)
    for _ in range(3):
        process.stdin.write(os.urandom(1_000_000))
        await process.stdin.drain.aio()
    process.stdin.write_eof()
    await process.stdin.drain.aio()
    assert await process.stdout.read.aio() == b"3000000\n"


async def test_a_command_over_its_timeout_is_killed(account: Account):
    sandbox = await account.create()
    process = await sandbox.exec.aio("sleep", "600", timeout=1)
    assert await process.poll.aio() is None
    assert await process.wait.aio() == -1, "the client's way of telling a timeout"


async def test_files_are_written_and_read(account: Account):
    files = (await account.create()).filesystem
    content = os.urandom(3_000_000)
    await files.write_bytes.aio(content, "/stuff/a/b")
    assert await files.read_bytes.aio("/stuff/a/b") == content
    assert (await files.stat.aio("/stuff/a/b")).size == len(content)
    assert [entry.name for entry in await files.list_files.aio("/stuff/a")] == ["b"]
    await files.make_directory.aio("/stuff/c/d")
    await files.remove.aio("/stuff/a", recursive=True)
    assert [entry.name for entry in await files.list_files.aio("/stuff")] == ["c"]
    with pytest.raises(exception.SandboxFilesystemNotFoundError):
        await files.read_bytes.aio("/stuff/a/b")
    with pytest.raises(exception.SandboxFilesystemError):
        await files.write_text.aio("x", "/usr/x")


async def test_a_snapshot_has_what_the_sandbox_had_and_forks_go_their_own_way(account: Account):
    sandbox = await account.create()
    await sandbox.filesystem.write_text.aio("prepared", "/stuff/file")
    image = await sandbox.snapshot_filesystem.aio()
    await sandbox.filesystem.write_text.aio("changed", "/stuff/file")
    forks = [await account.create(image=image) for _ in range(2)]
    await forks[0].filesystem.write_text.aio("mine", "/stuff/own")
    assert await forks[0].filesystem.read_text.aio("/stuff/file") == "prepared"
    assert [entry.name for entry in await forks[1].filesystem.list_files.aio("/stuff")] == ["file"]


async def test_names_are_unique_while_their_sandbox_lives(account: Account):
    first = await account.create(name="one")
    with pytest.raises(exception.AlreadyExistsError):
        await account.create(name="one")
    assert (await account.named("one")).object_id == first.object_id
    await first.terminate.aio()
    with pytest.raises(exception.NotFoundError):
        await account.named("one")
    second = await account.create(name="one")
    assert second.object_id != first.object_id


async def test_sandboxes_are_listed_by_their_tags(account: Account):
    sandboxes = [await account.create(tags={"run": "a", "n": str(n)}) for n in range(3)]
    await account.create(tags={"run": "b"})

    async def listed(**tags: str) -> set[str]:
        found = modal.Sandbox.list.aio(app_id=account.app.app_id, tags=tags, client=account.client)
        return {sandbox.object_id async for sandbox in found}

    assert await listed(run="a") == {sandbox.object_id for sandbox in sandboxes}
    assert await sandboxes[1].get_tags.aio() == {"run": "a", "n": "1"}
    await sandboxes[1].set_tags.aio({"run": "c"})
    await sandboxes[2].terminate.aio()
    assert await listed(run="a") == {sandboxes[0].object_id}


async def test_secrets_are_in_the_environment_by_value_and_by_name(
    account: Account, server: EmulatedModal
):
    server.tell("secret", name="named", env={"BY_NAME": "two"})
    secrets = [
        modal.Secret.from_dict({"BY_VALUE": "one"}),
        modal.Secret.from_name("named"),
    ]
    sandbox = await account.create(secrets=secrets)
    assert (await said(sandbox, "sh", "-c", "echo $BY_VALUE $BY_NAME"))[0] == b"one two\n"
    with pytest.raises(exception.NotFoundError):
        await account.create(secrets=[modal.Secret.from_name("missing")])


async def test_a_blocked_network_is_not_there(account: Account, server: EmulatedModal):
    reach = f"exec 3<>/dev/tcp/127.0.0.1/{server.port}"
    shut, open_ = await account.create(block_network=True), await account.create()
    assert (await said(shut, "bash", "-c", reach))[2] != 0
    assert (await said(open_, "bash", "-c", reach))[2] == 0


async def test_a_sandbox_ends_at_the_end_of_its_lifetime(account: Account):
    sandbox = await account.create(timeout=1)
    process = await sandbox.exec.aio("sleep", "600")
    assert await process.wait.aio() == 137, "as if it had been killed, which it was"
    with pytest.raises(exception.SandboxTimeoutError):
        await sandbox.wait.aio()
    assert await sandbox.poll.aio() == 124


async def test_a_sandbox_in_which_nothing_runs_ends_and_one_in_which_something_does_lives(
    account: Account,
):
    busy, idle = [await account.create(idle_timeout=1) for _ in range(2)]
    process = await busy.exec.aio("sleep", "600")
    async with asyncio.timeout(60):
        await idle.wait.aio(raise_on_termination=False)
    assert await busy.poll.aio() is None
    assert await process.poll.aio() is None


async def test_what_was_terminated_takes_no_commands(account: Account, server: EmulatedModal):
    sandbox = await account.create()
    await sandbox.exec.aio("sleep", "600")
    assert await sandbox.terminate.aio(wait=True) == 137
    other = await modal.Sandbox.from_id.aio(sandbox.object_id, client=account.client)
    with pytest.raises(exception.NotFoundError):
        await other.exec.aio("true")
    await other.detach.aio()
    assert not server.processes()


async def test_the_main_command_has_streams_and_ends_its_sandbox(account: Account):
    sandbox = await account.create("sh", "-c", "echo main; exit 7")
    assert await sandbox.stdout.read.aio() == "main\n"
    await sandbox.wait.aio()
    assert sandbox.returncode == 7


async def test_what_cannot_be_is_refused(account: Account):
    with pytest.raises(exception.InvalidError, match="GPU type"):
        await account.create(gpu="X1000")
    with pytest.raises(exception.InvalidError, match="memory"):
        await account.create(memory=1 << 30)
    with pytest.raises(modal.exception.ImageBuildError):
        await account.create(image=modal.Image.from_registry(MISSING_IMAGE))
    with pytest.raises(exception.NotFoundError):
        await modal.App.lookup.aio("no-such-app", client=account.client)


async def test_a_sandbox_with_a_gpu_is_of_the_older_kind_and_works_the_same(account: Account):
    sandbox = await account.create(gpu="T4", name="with-gpu", tags={"a": "b"})
    assert len(sandbox.object_id) == len("sb-") + 22
    assert (await said(sandbox, "echo", "hi"))[0] == b"hi\n"
    assert (await account.named("with-gpu")).object_id == sandbox.object_id
    assert await sandbox.get_tags.aio() == {"a": "b"}
    assert await sandbox.terminate.aio(wait=True) == 137


async def test_a_wrong_token_is_refused(server: EmulatedModal):
    client = await modal.Client.from_credentials.aio(server.token_id, "as-wrong")
    with pytest.raises(exception.AuthError):
        await client.hello.aio()
    await client.close.aio()


async def test_what_is_not_emulated_says_so(account: Account):
    sandbox = await account.create()
    with pytest.raises(exception.UnimplementedError, match="is not emulated"):
        await sandbox._experimental_snapshot.aio()


async def test_many_at_once(account: Account):
    async def one(number: int) -> bytes:
        sandbox = await account.create()
        return (await said(sandbox, "echo", str(number)))[0]

    answers = await asyncio.gather(*map(one, range(24)))
    assert answers == [b"%d\n" % number for number in range(24)]
