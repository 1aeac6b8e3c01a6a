# SPDX-License-Identifier: Apache-2.0
"""Directions and parameters become edits: values, schedules, planners, weight form and hook form."""
