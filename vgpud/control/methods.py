"""The methods of the control API: names, parameters, results and descriptors.

The server dispatches by this table, `rpc.discover` is generated from it, and clients can look up a
result's model in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydantic import BaseModel, RootModel

from vgpud.control import models, params
from vgpud.publish import Json


class OpenRpcDocument(RootModel[dict[str, Json]]):
    """A service description. Source: the OpenRPC specification, 1.3."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method. `about` says what it does; `fd` describes the descriptor of its answer, if any."""

    name: str
    about: str
    params: type[params.Params]
    result: type[BaseModel]
    fd: str | None = None


_METHODS: Final[tuple[Method, ...]] = (
    Method(
        "rpc.discover",
        "Describe all methods, as an OpenRPC document.",
        params.Nothing,
        OpenRpcDocument,
    ),
    Method("daemon.info", "Return the daemon's state.", params.Nothing, models.DaemonInfo),
    Method("config.reload", "Read the configuration again.", params.Nothing, models.Reloaded),
    Method("metrics.get", "Return metrics as OpenMetrics.", params.PagedText, models.Metrics),
    Method("device.list", "List all devices.", params.Paged, models.Page[models.DeviceDetails]),
    Method("device.get", "Return one device.", params.OfDevice, models.DeviceDetails),
    Method("device.resize", "Offer the guest another mode.", params.Resize, models.Resized),
    Method(
        "device.screenshot",
        "Return what an output shows.",
        params.TakeScreenshot,
        models.Screenshot,
        "the picture, a PNG file",
    ),
    Method("blob.list", "List blob resources.", params.PagedOfDevice, models.Page[models.Blob]),
    Method("blob.create", "Create a blob for the VMM's own use.", params.CreateBlob, models.Blob),
    Method("blob.map", "Map a blob of the VMM's into the guest.", params.MapBlob, models.Blob),
    Method("blob.unmap", "Unmap a blob of the VMM's.", params.OfBlob, models.Blob),
    Method("blob.destroy", "Destroy a blob of the VMM's.", params.OfBlob, models.Done),
    Method(
        "blob.export",
        "Return a host blob's memory, as a file and an offset.",
        params.OfBlob,
        models.BlobExport,
        "the file that the blob is in, writable",
    ),
    Method(
        "slot.list", "List mappings into guests.", params.PagedOfDevice, models.Page[models.Slot]
    ),
    Method("agent.attach", "Become a device's slot agent.", params.AttachAgent, models.Agent),
    Method("agent.detach", "Stop being a slot agent.", params.OfDevice, models.Detached),
    Method("events.subscribe", "Start notifications.", params.Subscribe, models.Subscription),
    Method("events.unsubscribe", "Stop notifications.", params.Nothing, models.Unsubscribed),
)

METHODS: Final = MappingProxyType({method.name: method for method in _METHODS})
"""The methods by name."""
