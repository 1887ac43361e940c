"""Names of files and folders in a store, and of tensors in an adapter's files."""

import re

from peftlab.recipe.types import ADAPTER_NAME as ADAPTER_NAME

MANIFEST_FILE = "peftlab.json"
CONFIG_FILE = "adapter_config.json"
"""PEFT's configuration of an adapter."""
WEIGHTS_FILE = "adapter_model.safetensors"
"""The tensors of an adapter, as PEFT saves them."""
CURRENT_FILE = "current"
"""The file that holds an adapter's current version."""
RUN_FOLDER = "run"
VERSION = re.compile(r"[1-9][0-9]{0,8}")
STACK_SEPARATOR = "+"
"""Joins the names of stacked adapters, the lowest one first."""
PEFT_PREFIX = "base_model.model."
"""The prefix that PEFT gives to the name of every tensor in an adapter's file."""
