"""``keybroker kbs``: the broker, from a configuration file or from an original's ``kbs.env``."""

import argparse
import os
from pathlib import Path

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
    parser.add_argument(
        "--env-file",
        metavar="FILE",
        help="kbs.env of a Trust Authority key broker, in place of a configuration file",
    )
    parser.add_argument(
        "--home",
        metavar="DIR",
        type=Path,
        help="with --env-file: where everything is kept (default: /opt/kbs and /etc/kbs/certs)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve until told to stop."""
    if options.env_file:
        from keybroker.cli.kbs_env import prepare

        return launch(prepare(options.env_file, options.home))
    if not options.config_file:
        raise ConfigError("no configuration file: give -c FILE or set KBS_CONFIG_FILE")
    return launch(load_config(options.config_file, KbsConfig))
