"""Redaction of secrets in recorded data. Secrets are recognized by name and by form, and replaced with `***`.

Redaction applies to command lines, configurations, resource attributes and addresses. The module `names` judges names,
and `values` judges the form of strings. Numbers are kept, except integers whose name indicates a password.
"""

from tensormeter.redaction.addresses import mask_address, mask_addresses, strip_address
from tensormeter.redaction.environment import environment_secrets
from tensormeter.redaction.names import Suspicion, suspect
from tensormeter.redaction.output import OutputMask, mask_values
from tensormeter.redaction.structure import mask_arguments, mask_config
from tensormeter.redaction.text import mask_text
from tensormeter.redaction.values import MASK

__all__ = [
    "MASK",
    "OutputMask",
    "Suspicion",
    "environment_secrets",
    "mask_address",
    "mask_addresses",
    "mask_arguments",
    "mask_config",
    "mask_text",
    "mask_values",
    "strip_address",
    "suspect",
]
