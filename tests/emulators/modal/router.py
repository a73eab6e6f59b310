"""The command router of a worker: `modal.task_command_router.TaskCommandRouter`, as far as sandboxes need it."""

from collections.abc import Callable, Mapping
from typing import Any

from grpclib import GRPCError, Status
from modal_proto import task_command_router_pb2 as pb2

from tests.emulators.modal.building import Image
from tests.emulators.modal.process import ERROR, OUTPUT, Command
from tests.emulators.modal.rpc import streaming
from tests.emulators.modal.sandbox import copy_tree
from tests.emulators.modal.state import State, new_id


class Router:
    """One method an RPC."""

    def __init__(self, state: State) -> None:
        self._state = state

    def _admit(self, name: str, metadata: Mapping[str, Any]) -> None:
        if not str(metadata.get("authorization", "")).startswith("Bearer ey"):
            raise GRPCError(Status.UNAUTHENTICATED, f"{name} needs a token of the router")

    # --- commands -----------------------------------------------------------------------------------

    async def task_exec_start(self, request):
        sandbox = self._state.task(request.task_id)
        environment = dict(request.env) | self._state.environment(request.secret_sources)
        await sandbox.execute(
            request.exec_id,
            list(request.command_args),
            environment,
            request.workdir,
            request.timeout_secs,
        )
        return pb2.TaskExecStartResponse()

    @streaming
    async def task_exec_stdio_read(self, stream):
        request = await stream.recv_message()
        command = self._command(request)
        is_output = request.file_descriptor == pb2.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDOUT
        await _copy_out(
            stream,
            command,
            OUTPUT if is_output else ERROR,
            request.offset,
            lambda data, _: pb2.TaskExecStdioReadResponse(data=data),
        )

    async def task_exec_stdin_write(self, request):
        command = self._command(request)
        await _write(command, request.offset, request.data, eof=request.eof)
        return pb2.TaskExecStdinWriteResponse()

    @streaming
    async def task_exec_stdin_write_stream(self, stream):
        start = (await stream.recv_message()).start
        command, offset = self._command(start), start.offset
        async for message in stream:
            if message.WhichOneof("payload") == "data":
                await _write(command, offset, message.data)
                offset += len(message.data)
            else:
                await _write(command, offset, b"", eof=True)
        await stream.send_message(pb2.TaskExecStdinWriteStreamResponse())

    def task_exec_stdin_status(self, request):
        command = self._command(request)
        return pb2.TaskExecStdinStatusResponse(
            num_bytes_written=command.written, closed=command.input_closed
        )

    async def task_exec_wait(self, request):
        command = self._command(request)
        await command.exited.wait()
        return _how_it_ended(command, pb2.TaskExecWaitResponse)

    def task_exec_poll(self, request):
        command = self._command(request)
        if command.exited.is_set():
            return _how_it_ended(command, pb2.TaskExecPollResponse)
        return pb2.TaskExecPollResponse()

    def _command(self, request) -> Command:
        """Also of a sandbox that has ended, whose commands can still be asked about."""
        command = self._state.ended_task(request.task_id).commands.get(request.exec_id)
        if command is None:
            raise GRPCError(Status.NOT_FOUND, f"Exec {request.exec_id} not found")
        return command

    # --- the sandbox's main command, and its files --------------------------------------------------

    @streaming
    async def sandbox_stdio_read_v2(self, stream):
        request = await stream.recv_message()
        main = self._state.ended_task(request.task_id).main
        if main is None:
            return
        is_output = request.file_descriptor == pb2.SANDBOX_STDIO_FILE_DESCRIPTOR_STDOUT
        await _copy_out(
            stream,
            main,
            OUTPUT if is_output else ERROR,
            request.offset,
            lambda data, offset: pb2.SandboxStdioReadV2Response(data=data, starting_offset=offset),
        )

    async def task_snapshot_filesystem(self, request):
        sandbox = self._state.task(request.task_id)
        image_id = new_id("im", 22)
        contents = self._state.folder / image_id
        await copy_tree(sandbox.folder, contents)
        self._state.images[image_id] = Image(
            f"snapshot of {sandbox.sandbox_id}", contents, sandbox.image_workdir
        )
        self._state.save()
        return pb2.TaskSnapshotFilesystemResponse(image_id=image_id)


async def _copy_out(
    stream: Any,
    command: Command,
    descriptor: int,
    offset: int,
    message: Callable[[bytes, int], Any],
) -> None:
    try:
        while data := await command.outputs[descriptor].read(offset):
            await stream.send_message(message(data, offset))
            offset += len(data)
    except LookupError as error:
        raise GRPCError(Status.OUT_OF_RANGE, str(error)) from error


async def _write(command: Command, offset: int, data: bytes, *, eof: bool = False) -> None:
    try:
        await command.write(offset, data, eof=eof)
    except LookupError as error:
        raise GRPCError(Status.OUT_OF_RANGE, str(error)) from error
    except (BrokenPipeError, ConnectionResetError) as error:
        raise GRPCError(Status.FAILED_PRECONDITION, "the process takes no input") from error


def _how_it_ended(command: Command, kind: Any) -> Any:
    code = command.code
    assert code is not None
    return kind(code=code) if code >= 0 else kind(signal=-code)
