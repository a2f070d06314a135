"""`python -m influx` is `influx`."""

import sys

from influx.cli import main

sys.exit(main())
