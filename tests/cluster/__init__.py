# SPDX-License-Identifier: Apache-2.0
"""Several workers on one study: on SQLite, and on a PostgreSQL server that the tests start and stop."""
