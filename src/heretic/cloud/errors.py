# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a rented machine: leaves of the one error tree (requirements R-ERR-01, reliability R08).

CloudError 1
  APIKeyValidationError 2   ProviderError   InstanceStateUnknownError
  OfferNotFoundError 3      InstanceNotFoundError 3
  SSHError > HostKeyError   RemoteCommandError
"""

from __future__ import annotations

from heretic.exceptions import HereticError


class CloudError(HereticError):
    """Something about a rented machine or its provider."""


class APIKeyValidationError(CloudError):
    """There is no key, or it cannot be one; no request was sent."""

    exit_code = 2


class ProviderError(CloudError):
    """The provider refused a request or answered with something that cannot be understood."""


class InstanceStateUnknownError(CloudError):
    """A request was sent and its effect was not seen: money may be running."""


class OfferNotFoundError(CloudError):
    """No offer passes the filters."""

    exit_code = 3


class InstanceNotFoundError(CloudError):
    """No instance is there to act on."""

    exit_code = 3


class SSHError(CloudError):
    """The machine cannot be reached, or the connection broke."""


class HostKeyError(SSHError):
    """The machine shows another key than before: it may be another machine."""


class RemoteCommandError(CloudError):
    """A command on the machine ended with an error."""
