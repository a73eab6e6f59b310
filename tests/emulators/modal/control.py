"""The control plane: `modal.client.ModalClient`, as far as sandboxes need it."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2

from tests.emulators.modal.building import Build, BuildError, forget
from tests.emulators.modal.rpc import Gate
from tests.emulators.modal.sandbox import Sandbox
from tests.emulators.modal.sandbox import Status as Result
from tests.emulators.modal.state import MISSING_IMAGE, State, new_id, new_token

BUILDER = "2025.06"
_PAGE = 50


class Control:
    """One method an RPC."""

    def __init__(self, state: State, gate: Gate) -> None:
        self._state = state
        self._gate = gate

    def _admit(self, name: str, metadata: Mapping[str, Any]) -> None:
        self._gate.check_token(metadata)
        if name.endswith("V2") and not metadata.get("x-modal-auth-token"):
            raise GRPCError(Status.UNAUTHENTICATED, f"{name} needs an auth token")

    # --- who calls, and what there is ---------------------------------------------------------------

    def client_hello(self, _):
        return api_pb2.ClientHelloResponse()

    def auth_token_get(self, _):
        return api_pb2.AuthTokenGetResponse(token=new_token("control"))

    def environment_get_or_create(self, request):
        settings = api_pb2.EnvironmentSettings(image_builder_version=BUILDER)
        metadata = api_pb2.EnvironmentMetadata(
            name=request.deployment_name or "main", settings=settings
        )
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id="en-emulated", metadata=metadata
        )

    def app_get_or_create(self, request):
        create = api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING
        if request.app_name not in self._state.apps and request.object_creation_type != create:
            raise GRPCError(Status.NOT_FOUND, f"App {request.app_name} not found")
        app_id = self._state.apps.setdefault(request.app_name, new_id("ap", 22))
        self._state.save()
        return api_pb2.AppGetOrCreateResponse(
            app_id=app_id, handle_metadata=api_pb2.AppHandleMetadata(app_id=app_id)
        )

    def app_list(self, _):
        items = [
            api_pb2.AppListResponse.AppListItem(
                app_id=app_id, name=name, state=api_pb2.APP_STATE_DEPLOYED
            )
            for name, app_id in self._state.apps.items()
        ]
        return api_pb2.AppListResponse(apps=items)

    async def image_get_or_create(self, request):
        image = request.image
        bases = {each.docker_tag: each.image_id for each in image.base_images}
        description = "\n".join(
            [*image.dockerfile_commands, image.context_mount_id, *bases.values()]
        ).rstrip("\n")
        found = (
            image_id
            for image_id, image in self._state.images.items()
            if image.description == description
        )
        known = next(found, None)
        image_id = known or new_id("im", 22)
        result = api_pb2.GenericResult(status=Result.GENERIC_STATUS_SUCCESS)
        if known is None:
            try:
                await self._build(image_id, description, image, bases)
            except BuildError as error:
                result = api_pb2.GenericResult(
                    status=Result.GENERIC_STATUS_FAILURE, exception=str(error)
                )
        return api_pb2.ImageGetOrCreateResponse(
            image_id=image_id, result=result, metadata=_image_metadata()
        )

    async def _build(self, image_id: str, description: str, image: Any, bases: Any) -> None:
        if MISSING_IMAGE in description:
            raise BuildError("manifest unknown")
        state = self._state
        names = state.mounts.get(image.context_mount_id, {})
        folder = state.folder / image_id
        build = Build(
            list(image.dockerfile_commands),
            {tag: state.images[base] for tag, base in bases.items()},
            {name.lstrip("/"): state.stored[digest] for name, digest in names.items()},
            folder,
        )
        try:
            built = await build.run()
        except BuildError:
            forget(folder)
            raise
        built.description = description
        state.images[image_id] = built
        state.save()

    def image_from_id(self, request):
        if request.image_id not in self._state.images:
            raise GRPCError(Status.NOT_FOUND, f"Image {request.image_id} not found")
        return api_pb2.ImageFromIdResponse(image_id=request.image_id, metadata=_image_metadata())

    def mount_get_or_create(self, request):
        if not request.files:
            return api_pb2.MountGetOrCreateResponse(mount_id=f"mo-{request.deployment_name}")
        files = {file.filename: file.sha256_hex for file in request.files}
        digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
        self._state.mounts[f"mo-{digest[:22]}"] = files
        return api_pb2.MountGetOrCreateResponse(mount_id=f"mo-{digest[:22]}")

    def mount_batched_check_existence(self, request):
        missing = [each for each in request.sha256_hex_hashes if each not in self._state.stored]
        return api_pb2.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def mount_put_file(self, request):
        self._state.stored[request.sha256_hex] = request.data
        return api_pb2.MountPutFileResponse(exists=True)

    def secret_get_or_create(self, request):
        if request.deployment_name and not request.env_dict:
            secret_id = self._state.named_secrets.get(request.deployment_name)
            if secret_id is None:
                raise GRPCError(Status.NOT_FOUND, f"Secret '{request.deployment_name}' not found")
        else:
            secret_id = new_id("st", 22)
            self._state.secrets[secret_id] = dict(request.env_dict)
            if request.deployment_name:
                self._state.named_secrets[request.deployment_name] = secret_id
            self._state.save()
        return api_pb2.SecretGetOrCreateResponse(secret_id=secret_id)

    # --- sandboxes ----------------------------------------------------------------------------------

    async def sandbox_create_v2(self, request):
        sandbox = await self._state.create(
            request.app_id,
            request.definition,
            request.tags,
            self._state.environment(request.secret_sources),
            v1=False,
        )
        return api_pb2.SandboxCreateV2Response(
            sandbox_id=sandbox.sandbox_id,
            task_id=sandbox.task_id,
            metadata=_metadata(sandbox),
            command_router_access=api_pb2.CommandRouterAccess(
                jwt=new_token(sandbox.task_id), url=self._state.url
            ),
            sandbox_token=f"token-of-{sandbox.sandbox_id}",
        )

    async def sandbox_create(self, request):
        """Of the older kind, which sandboxes with a GPU still are."""
        environment: dict[str, str] = {}
        for secret_id in request.definition.secret_ids:
            environment |= self._state.secret(secret_id)
        sandbox = await self._state.create(
            request.app_id, request.definition, request.tags, environment, v1=True
        )
        return api_pb2.SandboxCreateResponse(
            sandbox_id=sandbox.sandbox_id, metadata=_metadata(sandbox)
        )

    async def sandbox_wait_v2(self, request):
        sandbox = self._state.sandbox(request.sandbox_id)
        if request.timeout:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.ended.wait(), request.timeout)
        return api_pb2.SandboxWaitResponse(result=sandbox.result, metadata=_metadata(sandbox))

    async def sandbox_terminate_v2(self, request):
        sandbox = self._state.sandbox(request.sandbox_id)
        earlier = sandbox.result
        sandbox.end(Result.GENERIC_STATUS_TERMINATED, 137)
        await sandbox.gone()
        return api_pb2.SandboxTerminateResponse(existing_result=earlier)

    def sandbox_get_task_id_v2(self, request):
        sandbox = self._state.sandbox(request.sandbox_id)
        return api_pb2.SandboxGetTaskIdResponse(task_id=sandbox.task_id, task_result=sandbox.result)

    def sandbox_get_from_name_v2(self, request):
        return self._from_name(request, v1=False)

    def sandbox_get_from_name(self, request):
        return self._from_name(request, v1=True)

    def _from_name(self, request, *, v1: bool):
        app_id = self._state.apps.get(request.app_name, "")
        found = self._state.named(
            app_id, request.sandbox_name, also_ended=request.include_terminated
        )
        if found is None or found.is_v1 != v1:
            raise GRPCError(Status.NOT_FOUND, f"Sandbox {request.sandbox_name} not found")
        return api_pb2.SandboxGetFromNameResponse(
            sandbox_id=found.sandbox_id, metadata=_metadata(found)
        )

    def sandbox_list_v2(self, request):
        """Of both kinds, youngest first, a page at a time."""
        wanted = {(tag.tag_name, tag.tag_value) for tag in request.tags}
        before = request.before_timestamp or time.time() + 1
        found = [
            sandbox
            for sandbox in self._state.sandboxes.values()
            if request.app_id in ("", sandbox.app_id)
            and (request.include_finished or sandbox.result is None)
            and wanted <= set(sandbox.tags.items())
            and sandbox.created_at < before
        ]
        found.sort(key=lambda sandbox: -sandbox.created_at)
        return api_pb2.SandboxListResponse(sandboxes=[_info(each) for each in found[:_PAGE]])

    def sandbox_tags_set_v2(self, request):
        tags = {tag.tag_name: tag.tag_value for tag in request.tags}
        self._state.sandbox(request.sandbox_id).tags = tags
        return Empty()

    def sandbox_tags_get_v2(self, request):
        return api_pb2.SandboxTagsGetResponse(
            tags=_tags(self._state.sandbox(request.sandbox_id).tags)
        )

    def sandbox_get_command_router_access(self, request):
        sandbox = (
            self._state.sandbox(request.sandbox_id)
            if request.sandbox_id
            else self._state.ended_task(request.task_id)
        )
        self._check_alive(sandbox)
        return api_pb2.SandboxGetCommandRouterAccessResponse(
            jwt=new_token(sandbox.task_id), url=self._state.url
        )

    def task_get_command_router_access(self, request):
        sandbox = self._state.ended_task(request.task_id)
        self._check_alive(sandbox)
        return api_pb2.TaskGetCommandRouterAccessResponse(
            jwt=new_token(sandbox.task_id), url=self._state.url
        )

    # Of the older kind they differ in nothing that is emulated.
    sandbox_wait = sandbox_wait_v2
    sandbox_terminate = sandbox_terminate_v2
    sandbox_get_task_id = sandbox_get_task_id_v2
    sandbox_tags_get = sandbox_tags_get_v2
    sandbox_tags_set = sandbox_tags_set_v2

    def _check_alive(self, sandbox: Sandbox) -> None:
        if sandbox.result is not None:
            message = f"Sandbox {sandbox.sandbox_id} has already finished"
            raise GRPCError(Status.FAILED_PRECONDITION, message)


def _image_metadata() -> api_pb2.ImageMetadata:
    return api_pb2.ImageMetadata(image_builder_version=BUILDER, python_version_info="3.11")


def _metadata(sandbox: Sandbox) -> api_pb2.SandboxHandleMetadata:
    return api_pb2.SandboxHandleMetadata(app_id=sandbox.app_id, result=sandbox.result)


def _tags(tags: dict[str, str]) -> list[api_pb2.SandboxTag]:
    return [api_pb2.SandboxTag(tag_name=name, tag_value=value) for name, value in tags.items()]


def _info(sandbox: Sandbox) -> api_pb2.SandboxInfo:
    task = api_pb2.TaskInfo(
        id=sandbox.task_id, sandbox_id=sandbox.sandbox_id, result=sandbox.result
    )
    return api_pb2.SandboxInfo(
        id=sandbox.sandbox_id,
        created_at=sandbox.created_at,
        app_id=sandbox.app_id,
        name=sandbox.definition.name,
        image_id=sandbox.definition.image_id,
        timeout_secs=sandbox.definition.timeout_secs,
        task_info=task,
        tags=_tags(sandbox.tags),
        metadata=_metadata(sandbox),
    )
