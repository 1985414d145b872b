# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from vt_sglang.chat import launch
from vt_sglang.chat.launch import Launch, ServerOptions

OPTIONS = ServerOptions(
    model_path="some/model",
    device="cpu",
    context_length=1024,
    max_total_tokens=8192,
    max_running_requests=8,
    chunked_prefill_size=256,
    extra=("--dtype", "bfloat16"),
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in launch.CPU_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def without(server: Launch, *arguments: str) -> list[str]:
    """The command, less arguments that it must have, next to each other."""
    command = list(server.command)
    place = command.index(arguments[0])
    assert tuple(command[place : place + len(arguments)]) == arguments
    return command[:place] + command[place + len(arguments) :]


def test_servers_differ_in_the_cache_alone() -> None:
    stock, vtensor = launch.stock(OPTIONS), launch.vtensor(OPTIONS)
    assert without(stock, "--attention-backend", "torch_native") == without(vtensor, "--radix-cache-backend", "vtensor")
    assert stock.environment == vtensor.environment | {"SGLANG_PLUGINS": ","}
    for argument in (
        ("--model-path", "some/model"),
        ("--context-length", "1024"),
        ("--max-total-tokens", "8192"),
        ("--max-running-requests", "8"),
        ("--chunked-prefill-size", "256"),
        ("--device", "cpu"),
        ("--skip-tokenizer-init",),
    ):
        without(stock, *argument)


def test_a_gpu_needs_nothing_special() -> None:
    stock = launch.stock(replace(OPTIONS, device="cuda", max_total_tokens=None, extra=()))
    assert not {"--device", "--attention-backend", "--dtype", "--max-total-tokens"} & set(stock.command)
    assert "--skip-tokenizer-init" in stock.command
    assert stock.environment == launch.NO_PLUGINS


def test_further_arguments_stand_last() -> None:
    stock = launch.stock(OPTIONS, ("--page-size", "2"))
    assert stock.command[-4:] == ["--dtype", "bfloat16", "--page-size", "2"]
    assert "--page-size" not in launch.vtensor(OPTIONS).command


@pytest.mark.parametrize("extra", [("--radix-cache-backend", "vtensor"), ("--radix-cache-backend=vtensor",)])
def test_only_servers_that_ask_for_virtual_tensors_get_the_plug_in(extra: tuple[str, ...]) -> None:
    server = launch.named("some", OPTIONS, (*extra, "--page-size", "1"))
    assert (server.name, tuple(server.command[-2:])) == ("some", ("--page-size", "1"))
    assert server.environment == launch.vtensor(OPTIONS).environment
    for other in (("--attention-backend", "fa3"), ("--radix-cache-backend", "other"), ("vtensor",)):
        assert launch.named("some", OPTIONS, other).environment == launch.stock(OPTIONS).environment


def test_what_is_left_to_sglang_is_not_given() -> None:
    options = replace(OPTIONS, chunked_prefill_size=None)
    assert "--chunked-prefill-size" not in launch.vtensor(options).command


def test_what_the_user_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert launch.vtensor(OPTIONS).environment == {"SGLANG_USE_CPU_ENGINE": "1"}
