"""Direct inference, without a collection or a retriever."""

from __future__ import annotations

from tessera import raw_inference
from tessera.api.auth import Asking
from tessera.api.routing import Router, require
from tessera.api.scope import NamespaceName, Wh
from tessera.models.inference import RawInferenceRequest, RawInferenceResponse

router = Router(tags=["Inference"])


@router.post("/v1/inference", dependencies=[require("read")])
def infer(
    wh: Wh, asking: Asking, namespace: NamespaceName, body: RawInferenceRequest
) -> RawInferenceResponse:
    """Ask a model of the namespace for vectors, or the language model for replies; nothing is stored.

    The vector of a text or a picture is the one that a search for it would use.
    """
    return raw_inference.infer(wh, asking, namespace, body)
