"""What every test may use: one thread, a fixed seed, a tiny real model on disk."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch  # noqa: E402 - reads the environment when it is imported

if importlib.util.find_spec("beartype") and importlib.util.find_spec("jaxtyping"):  # a GPU machine may lack them
    import typecheck
    from jaxtyping import install_import_hook

    install_import_hook([f"lowbit.{room}" for room in typecheck.ROOMS], "typecheck.check")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Workers of pytest-xdist share the cores; more threads than that only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    """The same random numbers in every order of tests; a default dtype that a test changed goes back."""
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture(scope="session")
def _tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, two blocks whose inputs (128 and 256) hold groups of 128, 258 byte tokens, a context of 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("shared") / "tiny-llama"
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    letters = [begin, end, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([begin, end])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end, model_max_length=256)
    config = LlamaConfig(
        vocab_size=len(letters), hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_llama(_tiny_llama: Path, tmp_path: Path) -> Path:
    """The folder of a small random Llama with a byte tokenizer; the test's own copy."""
    return Path(shutil.copytree(_tiny_llama, tmp_path / "tiny-llama"))


@pytest.fixture(scope="session")
def lowbit_tiny() -> Path:
    """The folder of the bundled model, read only."""
    return ROOT / "models" / "lowbit-tiny"
