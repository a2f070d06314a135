"""Where a run is told when it has ended: one tracker a file. Off unless `logger=...` chooses one."""

from influx.loggers.account import Account
from influx.loggers.base import Logger

__all__ = ["Account", "Logger"]
