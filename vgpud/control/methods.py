"""The methods of the control API: names, parameters, results, and what else comes with an answer.

The one table that the server dispatches by, that `rpc.discover` is made of, and that clients can
look a result's model up in.
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
    """`fd` says what the descriptor is that comes with the answer, if one does."""

    name: str
    about: str
    params: type[params.Params]
    result: type[BaseModel]
    fd: str | None = None


_METHODS: Final[tuple[Method, ...]] = (
    Method(
        "rpc.discover",
        "What all methods take and give, as an OpenRPC document.",
        params.Nothing,
        OpenRpcDocument,
    ),
    Method("daemon.info", "The daemon.", params.Nothing, models.DaemonInfo),
    Method("config.reload", "Read the configuration anew.", params.Nothing, models.Reloaded),
    Method("metrics.get", "Counters, as OpenMetrics text.", params.PagedText, models.Metrics),
    Method("device.list", "All devices.", params.Paged, models.Page[models.Device]),
    Method("device.get", "One device.", params.OfDevice, models.Device),
    Method("device.resize", "Offer the guest another mode.", params.Resize, models.Resized),
    Method(
        "device.screenshot",
        "What an output shows.",
        params.TakeScreenshot,
        models.Screenshot,
        "the picture, a PNG file",
    ),
    Method("blob.list", "Blob resources.", params.PagedOfDevice, models.Page[models.Blob]),
    Method("blob.create", "Make a blob for the VMM's own use.", params.CreateBlob, models.Blob),
    Method("blob.map", "Show a blob of the VMM's to the guest.", params.MapBlob, models.Blob),
    Method("blob.unmap", "Take it from the guest again.", params.OfBlob, models.Blob),
    Method("blob.destroy", "Give back a blob of the VMM's.", params.OfBlob, models.Done),
    Method(
        "blob.export",
        "A host blob's memory.",
        params.OfBlob,
        models.BlobExport,
        "the file that the blob is in, writable",
    ),
    Method("slot.list", "Mappings into guests.", params.PagedOfDevice, models.Page[models.Slot]),
    Method("agent.attach", "Be a device's slot agent.", params.AttachAgent, models.Agent),
    Method("agent.detach", "Be it no longer.", params.OfDevice, models.Detached),
    Method("events.subscribe", "Get event notifications.", params.Subscribe, models.Subscription),
    Method("events.unsubscribe", "Get no more.", params.Nothing, models.Unsubscribed),
)

METHODS: Final = MappingProxyType({method.name: method for method in _METHODS})
"""By name."""
