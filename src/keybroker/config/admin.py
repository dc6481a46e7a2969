"""``[admin]``: who may set policies, resources and reference values."""

from collections.abc import Mapping
from typing import ClassVar, TypeAlias

from keybroker.config.section import Section


class IdentityProviderConfig(Section, kw_only=True, frozen=True):
    """An issuer of administrator tokens.

    Attributes:
        issuer: expected ``iss``; None or empty: not compared.
        audience: one of the token's ``aud``; None or empty: not compared.
        public_key_uri: PEM public key; ``https://``, ``file://`` or a path.
        jwk_set_uri: JWKS; ``https://`` (also by OpenID discovery), ``file://`` or a path.
    """

    issuer: str | None = None
    audience: str | None = None
    public_key_uri: str | None = None
    jwk_set_uri: str | None = None


class BearerJwtConfig(Section, kw_only=True, frozen=True):
    """Administrators show a JWT of one of these issuers."""

    identity_providers: tuple[IdentityProviderConfig, ...] = ()


class AuthenticationConfig(Section, kw_only=True, frozen=True):
    """How an administrator proves who they are."""

    bearer_jwt: BearerJwtConfig


class AclRuleConfig(Section, kw_only=True, frozen=True):
    """A role, and a regular expression of the request paths it may use (``^/kbs…$``)."""

    role: str
    allowed_endpoints: str = ""


class RegexAclConfig(Section, kw_only=True, frozen=True):
    """What each role may do; without a rule nobody may do anything."""

    acls: tuple[AclRuleConfig, ...] = ()


class AuthorizationConfig(Section, kw_only=True, frozen=True):
    """What an administrator may do."""

    regex_acl: RegexAclConfig


class _AdminSection(
    Section, kw_only=True, frozen=True, tag_field="authorization_mode", tag=lambda name: name
):
    #: Trustee's documentation still shows the older spelling of the key.
    key_aliases: ClassVar[Mapping[str, str]] = {"type": "authorization_mode"}


class InsecureAllowAll(_AdminSection, kw_only=True, frozen=True):
    """Everybody is an administrator. Never outside a test."""


class DenyAll(_AdminSection, kw_only=True, frozen=True):
    """Nobody is an administrator."""


class AuthenticatedAuthorization(_AdminSection, kw_only=True, frozen=True):
    """Administrators authenticate, and rules say what they may do."""

    authentication: AuthenticationConfig
    authorization: AuthorizationConfig


AdminConfig: TypeAlias = InsecureAllowAll | DenyAll | AuthenticatedAuthorization
