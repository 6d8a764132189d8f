"""The Protobuf messages of event files, reduced to the fields that the importer reads.

The field numbers are those of TensorFlow's `event.proto`, `summary.proto` and `tensor.proto`, and of TensorBoard's
hyperparameter plugin. The package `tensorboard` is not needed, and would import TensorFlow if it is installed.
"""

from typing import Any, Final

from tensormeter.importers.message_schema import build_messages

__all__ = ["SESSION_START", "Event", "HParams", "Value", "text_of"]

SESSION_START: Final = 1
"""Status of a session log that begins a new start of the run."""

_MESSAGES: Final = {
    "Summary": "1 value bytes*",
    "SessionLog": "1 status int32",
    "LogMessage": "1 level int32, 2 message string",
    "Event": "1 wall_time double, 2 step int64, 3 file_version string, 4 graph_def bytes, 5 summary Summary, "
    "6 log_message LogMessage, 7 session_log SessionLog, 8 tagged_run_metadata bytes, 9 meta_graph_def bytes",
    "Image": "1 height int32, 2 width int32, 3 colorspace int32, 4 encoded_image_string bytes",
    "Audio": "1 sample_rate float, 4 encoded_audio_string bytes, 5 content_type string",
    "Histogram": "1 min double, 2 max double, 3 num double, 4 sum double, 6 bucket_limit double*, 7 bucket double*",
    "Dimension": "1 size int64",
    "Shape": "2 dim Dimension*",
    "Tensor": "1 dtype int32, 2 tensor_shape Shape, 4 tensor_content bytes, 5 float_val float*, 6 double_val double*, "
    "7 int_val int32*, 8 string_val bytes*, 10 int64_val int64*, 11 bool_val bool*, 13 half_val int32*",
    "PluginData": "1 plugin_name string, 2 content bytes",
    "Metadata": "1 plugin_data PluginData, 3 summary_description string",
    "Value": "1 tag string, 2 simple_value float, 4 image Image, 5 histo Histogram, 6 audio Audio, 8 tensor Tensor, "
    "9 metadata Metadata",
    "HParamValue": "2 number_value double, 3 string_value string, 4 bool_value bool",
    "HParamEntry": "1 key string, 2 value HParamValue",
    "SessionStart": "1 hparams HParamEntry*, 4 group_name string, 5 start_time_secs double",
    "SessionEnd": "1 status int32, 2 end_time_secs double",
    "HParams": "3 session_start_info SessionStart, 4 session_end_info SessionEnd",
}
"""Fields by message; see `build_messages`. The values of a summary stay encoded, because most need no message."""

_CLASSES: Final = build_messages("tensormeter.importers.tensorboard", _MESSAGES, syntax="proto2")

Event: Final[Any] = _CLASSES["Event"]
Value: Final[Any] = _CLASSES["Value"]
HParams: Final[Any] = _CLASSES["HParams"]


def text_of(field: str | bytes) -> str:
    """Return a text field as text. Protobuf returns bytes if it is not UTF-8."""
    return field if isinstance(field, str) else field.decode(errors="replace")
