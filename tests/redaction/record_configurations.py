"""Record configurations that training scripts really have: `TrainingArguments` and the configurations of four models.

``python tests/redaction/record_configurations.py > tests/redaction/configurations.json``, where `transformers`, `accelerate` and
`torch` are installed. They are not among the dependencies for development, because importing them takes longer than the tests.
"""

import json
import tempfile

import transformers

MODELS = ("BertConfig", "LlamaConfig", "Qwen2VLConfig", "T5Config", "WhisperConfig")


def main() -> None:
    documents = {name: getattr(transformers, name)().to_dict() for name in MODELS}
    folder = tempfile.gettempdir()
    arguments = transformers.TrainingArguments(output_dir=f"{folder}/output", use_cpu=True, hub_token="hf_" + 34 * "a")
    documents["TrainingArguments"] = arguments.to_dict()
    print(json.dumps({"transformers": transformers.__version__, **documents}, indent=1, sort_keys=True, default=str))


main()
