"""The methods of the control API: names, grants, parameters, results and descriptors.

The server dispatches by this table and checks callers by it, `rpc.discover` is generated from it,
and clients can look up a result's model in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, RootModel

from vgpud.control import models, params
from vgpud.control.grants import AccessGrant
from vgpud.publish import Json


class OpenRpcDocument(RootModel[dict[str, Json]]):
    """A service description. Source: the OpenRPC specification, 1.3."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method. `about` says what it does; `fd` describes the descriptor of its answer, if any.

    A caller needs `grant` for the device that it names, or without one for any device, whose part
    it then gets; for a method of the `whole_daemon`, it needs the grant for all devices.
    """

    name: str
    grant: AccessGrant
    about: str
    params: type[params.Params]
    result: type[BaseModel]
    fd: str | None = None
    whole_daemon: bool = False


_METHODS: Final[tuple[Method, ...]] = (
    Method(
        "rpc.discover",
        AccessGrant.OBSERVE,
        "Describe all methods, as an OpenRPC document.",
        params.Nothing,
        OpenRpcDocument,
    ),
    Method(
        "daemon.info",
        AccessGrant.OBSERVE,
        "Return the daemon's state.",
        params.Nothing,
        models.DaemonInfo,
    ),
    Method(
        "config.reload",
        AccessGrant.CHANGE,
        "Read the configuration again.",
        params.Nothing,
        models.Reloaded,
        whole_daemon=True,
    ),
    Method(
        "metrics.get",
        AccessGrant.OBSERVE,
        "Return metrics as OpenMetrics.",
        params.PagedText,
        models.Metrics,
    ),
    Method(
        "device.list",
        AccessGrant.OBSERVE,
        "List all devices.",
        params.Paged,
        models.Page[models.DeviceDetails],
    ),
    Method(
        "device.get",
        AccessGrant.OBSERVE,
        "Return one device.",
        params.OfDevice,
        models.DeviceDetails,
    ),
    Method(
        "device.resize",
        AccessGrant.CHANGE,
        "Offer the guest another mode.",
        params.Resize,
        models.Resized,
    ),
    Method(
        "device.screenshot",
        AccessGrant.OBSERVE,
        "Return what an output shows.",
        params.TakeScreenshot,
        models.Screenshot,
        "the picture, a PNG file",
    ),
    Method(
        "blob.list",
        AccessGrant.OBSERVE,
        "List blob resources.",
        params.PagedOfDevice,
        models.Page[models.Blob],
    ),
    Method(
        "blob.create",
        AccessGrant.MEMORY,
        "Create a blob for the VMM's own use.",
        params.CreateBlob,
        models.Blob,
    ),
    Method(
        "blob.map",
        AccessGrant.MEMORY,
        "Map a blob of the VMM's into the guest.",
        params.MapBlob,
        models.Blob,
    ),
    Method(
        "blob.unmap", AccessGrant.MEMORY, "Unmap a blob of the VMM's.", params.OfBlob, models.Blob
    ),
    Method(
        "blob.destroy",
        AccessGrant.MEMORY,
        "Destroy a blob of the VMM's.",
        params.OfBlob,
        models.Done,
    ),
    Method(
        "blob.export",
        AccessGrant.MEMORY,
        "Return a host blob's memory, as a file and an offset.",
        params.OfBlob,
        models.BlobExport,
        "the file that the blob is in, writable",
    ),
    Method(
        "slot.list",
        AccessGrant.OBSERVE,
        "List mappings into guests.",
        params.PagedOfDevice,
        models.Page[models.Slot],
    ),
    Method(
        "agent.attach",
        AccessGrant.MEMORY,
        "Become a device's slot agent.",
        params.AttachAgent,
        models.Agent,
    ),
    Method(
        "agent.detach",
        AccessGrant.MEMORY,
        "Stop being a slot agent.",
        params.OfDevice,
        models.Detached,
    ),
    Method(
        "events.subscribe",
        AccessGrant.OBSERVE,
        "Start notifications.",
        params.Subscribe,
        models.Subscription,
    ),
    Method(
        "events.unsubscribe",
        AccessGrant.OBSERVE,
        "Stop notifications.",
        params.Nothing,
        models.Unsubscribed,
    ),
)

METHODS: Final = MappingProxyType({method.name: method for method in _METHODS})
"""The methods by name."""
