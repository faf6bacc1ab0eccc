"""The folder of a mixture, which `from_pretrained` loads: written whole, or not at all.

Equal inputs give equal bytes. Tensors are read and written one at a time; mixture.json comes last.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import GenerationConfig

from protocol.digests import digest_bytes
from shared.files import sync_folder, write_atomic
from shared.mixing import hub
from shared.mixing.facts import FACTS, ExpertFacts, MixtureFacts, SeedFacts, Tuning
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.ingredients import MixingError, Reader
from shared.mixing.names import expert_name, layer_of, part_of
from shared.mixing.progress import Counter, Stage, silent
from shared.mixing.recipe import Part, Recipe
from shared.mixing.router_tensors import LIKELIHOODS, Arrays, find_degeneracy
from shared.mixing.statistics import ExpertStatistics
from shared.tensorfiles import (
    MAX_HEADER_BYTES,
    TensorForm,
    check_file,
    model_tensors,
    stream_tensors,
)

WEIGHTS = "model.safetensors"
STATISTICS = "statistics"
"""The folder with what routers know of each expert's domain, a file each."""

_ENTRY_BYTES = 120
"""At most what a header says of a tensor beside its name."""

_AUTO_MAP = {
    "AutoConfig": "configuration_hdee_moe.HdeeMoeConfig",
    "AutoModelForCausalLM": "modeling_hdee_moe.HdeeMoeForCausalLM",
}


@dataclass(frozen=True)
class Tokens:
    """What a mixture's text is made of: the tokenizer's files, and the ids of BOS and EOS."""

    bos_id: int
    eos_id: int
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Assembly:
    """All that a mixture's folder is written from.

    `shared` reads the weights that are no expert's and `own` those of each expert, in the order of
    `experts`, by their names in a Llama of untied embeddings. `base_width` is the FFN width in
    layers without experts. `router` are the router's tensors by their names in the mixture.
    """

    recipe: Recipe
    owned: tuple[Part, ...]
    seed: SeedFacts
    experts: tuple[ExpertFacts, ...]
    base_width: int
    shared: Reader
    own: tuple[Reader, ...]
    router: Arrays
    statistics: Mapping[str, ExpertStatistics]
    tokens: Tokens
    tunings: tuple[Tuning, ...] = ()

    @property
    def is_tied(self) -> bool:
        """Whether the output embedding is the input embedding: where no expert has its own."""
        return self.seed.shape.tied_embeddings and not {"embeddings", "head"} & set(self.owned)

    def forms(self) -> dict[str, TensorForm]:
        """Name and form of every tensor, in the order of a Llama's, the router's last."""
        return {name: form for name, form, _ in self._tensors()}

    def readers(self) -> dict[str, Callable[[], npt.NDArray[Any]]]:
        """What gives each tensor, by its name."""
        return {name: read for name, _, read in self._tensors()}

    def facts(self, tokenizer: Mapping[str, str]) -> MixtureFacts:
        """What mixture.json says, given the digests of the tokenizer's files."""
        sizes = {name: int(np.prod(form)) for name, (_, form) in self.forms().items()}
        sizes.pop(LIKELIHOODS, None)
        return MixtureFacts(
            recipe=self.recipe,
            owned=self.owned,
            seed=self.seed,
            experts=self.experts,
            tokenizer=dict(tokenizer),
            parameters=sum(sizes.values()),
            shared_parameters=sum(n for name, n in sizes.items() if ".experts." not in name),
            warning=find_degeneracy(self.recipe, [one.name for one in self.experts], self.router),
            tunings=self.tunings,
        )

    def configuration(self) -> HdeeMoeConfig:
        """The configuration. Raises MixingError, which names the field, for one that cannot be."""
        recipe, shape, router = self.recipe, self.seed.shape, self.recipe.router
        names = [expert.name for expert in self.experts]
        try:
            return HdeeMoeConfig(
                architectures=["HdeeMoeForCausalLM"],
                dtype="float32",
                vocab_size=shape.vocab_size,
                hidden_size=shape.hidden_size,
                num_hidden_layers=shape.num_layers,
                num_attention_heads=shape.num_heads,
                num_key_value_heads=shape.kv_heads,
                max_position_embeddings=shape.context_length,
                rms_norm_eps=shape.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
                tie_word_embeddings=self.is_tied,
                bos_token_id=self.tokens.bos_id,
                eos_token_id=self.tokens.eos_id,
                expert_names=names,
                expert_widths=[expert.ffn_width for expert in self.experts],
                owned=list(self.owned),
                expert_layers=None if recipe.expert_layers is None else list(recipe.expert_layers),
                base_width=None if recipe.expert_layers is None else self.base_width,
                router=router.kind,
                router_bias=router.bias,
                router_hidden_size=router.hidden_size,
                selection=router.selection,
                gate_top_k=router.top_k,
                gate_top_p=router.top_p,
                threshold=router.threshold,
                always_on=None if router.always_on is None else names.index(router.always_on),
                prefix_sharpness=router.sharpness,
                prefix_window=router.window,
                prefix_saturation=router.saturation,
                prefix_decay=router.decay,
                prefix_pairs=self._num_pairs(),
                penalty_weight=router.penalty_weight,
                balance_weight=router.balance_weight,
                entropy_weight=router.entropy_weight,
            )
        except ValueError as error:
            raise MixingError(f"the mixture's configuration: {error}") from error

    def _num_pairs(self) -> int:
        """Rows of the prefix router's table behind those of the tokens."""
        table = self.router.get(LIKELIHOODS)
        return 0 if table is None else len(table) - self.seed.shape.vocab_size

    def _tensors(
        self,
    ) -> Iterator[tuple[str, TensorForm, Callable[[], npt.NDArray[Any]]]]:
        shape = self.seed.shape.model_copy(
            update={"tied_embeddings": self.is_tied, "ffn_width": self.base_width}
        )
        own = [
            model_tensors(shape.model_copy(update={"ffn_width": expert.ffn_width}))
            for expert in self.experts
        ]
        for name, form in model_tensors(shape).items():
            if not self._is_owned(name):
                yield name, form, partial(self.shared, name)
                continue
            for number, read in enumerate(self.own):
                yield (
                    expert_name(name, number),
                    own[number][name],
                    partial(read, name),
                )
        for name, tensor in self.router.items():
            yield name, ("F32", tensor.shape), partial(np.asarray, tensor)

    def _is_owned(self, name: str) -> bool:
        part, layers = part_of(name), self.recipe.expert_layers
        if part == "ffn":
            return layers is None or layer_of(name) in layers
        return part in self.owned


def write_mixture(assembly: Assembly, into: Path, *, stage: Stage = silent) -> MixtureFacts:
    """Write the folder `into`, which must not be there. Returns what its mixture.json says.

    `stage` is told the weights that are written.

    Raises MixingError, also for more tensors than a file of ours may name, TensorFileError,
    OSError, and what the readers raise. Nothing is left of a folder that was begun.
    """
    if into.exists():
        raise MixingError(f"{into}: is there already, expected a new folder")
    configuration = assembly.configuration()
    check_header(assembly.forms())
    into.parent.mkdir(parents=True, exist_ok=True)
    draft = into.with_name(f".{into.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        facts = _write(assembly, configuration, draft, stage)
        draft.rename(into)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(into.parent)
    return facts


def _write(
    assembly: Assembly, configuration: HdeeMoeConfig, draft: Path, stage: Stage
) -> MixtureFacts:
    forms, readers = assembly.forms(), assembly.readers()
    total = sum(math.prod(shape) for _, shape in forms.values())
    counter = Counter(stage("writing the mixture"), total)

    def read(name: str) -> npt.NDArray[Any]:
        tensor = readers[name]()
        counter.add(tensor.size)
        return tensor

    stream_tensors(draft / WEIGHTS, forms, read)
    check_file(draft / WEIGHTS, forms)
    assembly.tokens.write(draft)
    tokenizer = {
        path.name: digest_bytes(path.read_bytes())
        for path in sorted(draft.iterdir())
        if path.name != WEIGHTS
    }
    write_known(assembly.statistics, draft)
    write_settings(configuration, draft)
    facts = assembly.facts(tokenizer)
    sync_tree(draft)
    write_atomic(draft / FACTS, facts.to_bytes())
    return facts


def write_known(statistics: Mapping[str, ExpertStatistics], draft: Path) -> None:
    """Write what routers know of each expert's domain into a mixture's folder."""
    if statistics:
        (draft / STATISTICS).mkdir()
    for name, one in statistics.items():
        one.write(draft / STATISTICS / f"{name}.safetensors")


def write_settings(configuration: HdeeMoeConfig, draft: Path) -> None:
    """Write our modelling code, and the configuration that names it, into a mixture's folder."""
    for path in Path(hub.__path__[0]).glob("*_hdee_moe.py"):
        shutil.copyfile(path, draft / path.name)
    configuration.auto_map = dict(_AUTO_MAP)
    configuration.to_json_file(draft / "config.json")
    bos, eos = configuration.bos_token_id, configuration.eos_token_id
    GenerationConfig(bos_token_id=bos, eos_token_id=eos, pad_token_id=eos).to_json_file(
        draft / "generation_config.json"
    )


def check_header(forms: Mapping[str, TensorForm]) -> None:
    """Raises MixingError for more tensors than a file that we read again can name."""
    size = sum(_ENTRY_BYTES + len(name) for name in forms)
    if size > MAX_HEADER_BYTES:
        raise MixingError(
            f"{len(forms)} tensors: a header of some {size} bytes, expected at most "
            f"{MAX_HEADER_BYTES}: mix fewer experts, or fewer layers or parts of them"
        )


def sync_tree(folder: Path) -> None:
    """Make a folder, its files and those of the folders in it durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in (*filter(Path.is_dir, folder.iterdir()), folder):
        sync_folder(path)
