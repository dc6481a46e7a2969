"""``keybroker kbs``: the broker, from a configuration file."""

import argparse
import os

from keybroker.api.launch import launch
from keybroker.config.kbs import KbsConfig
from keybroker.config.loader import load_config
from keybroker.model.errors import ConfigError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command."""
    parser = subparsers.add_parser("kbs", help="run the broker from a configuration file")
    parser.add_argument(
        "-c",
        "--config-file",
        default=os.environ.get("KBS_CONFIG_FILE"),
        help="TOML, JSON or YAML, told by the suffix (default: $KBS_CONFIG_FILE)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    if not options.config_file:
        raise ConfigError("no configuration file: give -c FILE or set KBS_CONFIG_FILE")
    return launch(load_config(options.config_file, KbsConfig))
