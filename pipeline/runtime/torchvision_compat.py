"""Lets timm be imported beside a CPU-only torch whose torchvision was built for CUDA.

torchvision's compiled library cannot be loaded there, and its import stops at "operator torchvision::nms does
not exist". The missing operators' schemas are declared instead; calling them would still fail, but nothing
does.
"""

from functools import cache

import torch


@cache
def allow_torchvision_import() -> torch.library.Library | None:
    """Declares the operators that torchvision's import asks for, where its library has none.

    Returns the declarations, which last as long as this object; the cache keeps it.
    """
    try:
        import torchvision  # noqa: F401, PLC0415  the import itself is the question
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        return library
    return None
