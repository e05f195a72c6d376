"""What the commands that look at a finished run, or at a network, may be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from chanprune import components
from chanprune.components import Count, FilePath, PartOrAll, Positive, Text
from chanprune.config.checks import Section, check
from chanprune.config.schema import not_a_section
from chanprune.processes.texts import did_you_mean


class _Format(Section):
    format: Literal["table", "json"]


class DataNow(Section):
    """dataset.* of evaluate and export: where a run's data is now."""

    root: FilePath | None


class Evaluation(_Format):
    """evaluate: which run, where, and how to print it."""

    run: FilePath
    components: Text | None
    fidelity: Annotated[list[PartOrAll], Field(min_length=1)]
    target: Text | None
    device: Literal["auto", "cpu", "cuda"]


AGAINST = (*("dense", "masked", "contiguous", "compiled", "onnx", "dense_compiled", "dense_onnx"),)


def _ways(names: list[str]) -> list[str]:
    for name in names:
        if name not in AGAINST:
            hint = did_you_mean(name, AGAINST)
            raise ValueError(f"must be a list of {', '.join(AGAINST)}{hint}")
    return names


class Benchmark(_Format):
    """benchmark: which network, beside what, and how."""

    run: FilePath
    against: Annotated[list[str], AfterValidator(_ways)]
    batch: Annotated[list[Count], Field(min_length=1)]
    threads: Annotated[list[Count], Field(min_length=1)] | None
    seconds: Positive
    target: Text | None
    components: Text | None
    device: Literal["auto", "cpu", "cuda"]


class Export(Section):
    """export: which run, as which format, and where the file goes."""

    run: FilePath
    format: Literal["onnx", "torch_export", "torchscript"]
    out: FilePath | None
    fidelity: PartOrAll
    opset: Count | None
    preprocess: bool
    precision: Literal["fp32", "fp16", "int8"]
    components: Text | None
    target: Text | None


def check_evaluate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of `evaluate`, as `validate` does."""
    return _check_with_data(Evaluation, values)


def check_export(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of `export`, as `validate` does."""
    return _check_with_data(Export, values)


def _check_with_data(kind: type[Section], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check options beside which dataset.root may stand."""
    options = {key: value for key, value in values.items() if key != "dataset"}
    dataset = values.get("dataset")
    if not isinstance(dataset, Mapping):
        raise not_a_section("dataset", dataset)
    checked = check(kind, options, "", [*kind.model_fields, "dataset"])
    components.use(checked["components"])
    return {
        **checked,
        "dataset": check(DataNow, dataset, "dataset.", list(DataNow.model_fields)),
    }


def check_benchmark(values: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options of `benchmark`, as `validate` does."""
    checked = check(Benchmark, values, "", list(Benchmark.model_fields))
    components.use(checked["components"])
    return checked


def check_format(value: Any) -> str:
    """Check the output format, "table" or "json"; raises as `validate` does."""
    form: str = check(_Format, {"format": value}, "", ["format"])["format"]
    return form
