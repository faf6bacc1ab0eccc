"""What each file of a spec's checkpoints holds: the trainer writes it so, everyone else checks."""

from protocol.manifests import FileName
from protocol.specs import ExpertSpec
from shared.lora import adapter_tensors
from shared.tensorfiles import TensorForm, model_tensors, moments_of


def tensors_of(name: FileName, spec: ExpertSpec) -> dict[str, TensorForm]:
    """Name and form of every tensor in the file called `name` of a checkpoint of `spec`.

    Raises ValueError for a file that holds no tensors, or that no checkpoint of `spec` has.
    """
    if name == "model.safetensors":
        return model_tensors(spec.shape)
    adapter = None if spec.lora is None else adapter_tensors(spec.shape, spec.lora)
    if name == "optimizer.safetensors":
        return moments_of(model_tensors(spec.shape) if adapter is None else adapter)
    if name == "adapter.safetensors" and adapter is not None:
        return adapter
    raise ValueError(f"{name}: no file of tensors that a checkpoint of this spec has")
