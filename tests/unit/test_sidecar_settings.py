"""The sidecar's settings: what it accepts, and what it says otherwise."""

import pytest

from sidecar.protocol import Address, Mode
from sidecar.settings import Settings, SettingsError

TOKEN = "0123456789abcdef0123456789abcdef"
ENVIRON = {
    "SEMAPHORE": "batch/reports-db",
    "SLOT": "2",
    "TOKEN": TOKEN,
    "EXPIRATION_SECONDS": "60",
    "REDIS_ADDRESSES": "redis-0:6379,redis-1:6379,redis-2:6379",
}


def settings(**changes: str) -> Settings:
    return Settings.from_env({**ENVIRON, **changes})


def test_the_variables_of_the_webhook_are_enough():
    assert (
        Settings(
            semaphore="batch/reports-db",
            slot=2,
            token=TOKEN,
            lease_seconds=60,
            addresses=(Address("redis-0", 6379), Address("redis-1", 6379), Address("redis-2", 6379)),
            login=(),
            variant="",
            mode=Mode.NATIVE,
        )
        == settings()
    )


def test_optional_variables_are_read():
    given = settings(REDIS_USERNAME="sidecar", REDIS_PASSWORD="secret", VARIANT="blue", SIDECAR_MODE="container")
    assert (given.login, given.variant, given.mode) == (("sidecar", "secret"), "blue", Mode.CONTAINER)


def test_a_password_alone_is_the_default_users():
    assert settings(REDIS_PASSWORD="secret").login == ("secret",)


def test_an_empty_optional_variable_counts_as_missing():
    assert settings() == settings(REDIS_USERNAME="", REDIS_PASSWORD="", VARIANT="", SIDECAR_MODE="")


@pytest.mark.parametrize("missing", [{}, {"SLOT": ""}], ids=["absent", "empty"])
def test_the_slot_of_a_pod_that_waited_for_it_is_not_known(missing):
    environ = {name: value for name, value in ENVIRON.items() if name != "SLOT"}
    assert settings()._replace(slot=None) == Settings.from_env({**environ, **missing})


@pytest.mark.parametrize("value", ["5", "86400"])
def test_a_lease_lasts_from_five_seconds_to_a_day(value):
    assert int(value) == settings(EXPIRATION_SECONDS=value).lease_seconds


@pytest.mark.parametrize("variable", sorted(ENVIRON.keys() - {"SLOT"}))
@pytest.mark.parametrize("missing", ["", None], ids=["empty", "absent"])
def test_a_missing_variable_is_named(variable, missing):
    environ = {name: value for name, value in ENVIRON.items() if name != variable}
    with pytest.raises(SettingsError, match=f"^{variable}: not set; the webhook writes it"):
        Settings.from_env(environ if missing is None else {**environ, variable: missing})


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("SLOT", "-1", "write its number"),
        ("SLOT", "²", "write its number"),
        ("SLOT", "1\n", "write its number"),
        ("EXPIRATION_SECONDS", "4", "from 5 to 86400"),
        ("EXPIRATION_SECONDS", "86401", "from 5 to 86400"),
        ("EXPIRATION_SECONDS", "5.5", "whole seconds"),
        ("EXPIRATION_SECONDS", "+60", "whole seconds"),
        ("REDIS_ADDRESSES", "redis-0", "write host:port"),
        ("REDIS_ADDRESSES", "a:1,b:1", "give an odd number"),
        ("REDIS_USERNAME", "sidecar", "set REDIS_PASSWORD as well"),
        ("SIDECAR_MODE", "Native", "write native or container"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_the_remedy_on_one_line(variable, value, remedy):
    with pytest.raises(SettingsError) as caught:
        settings(**{variable: value})
    message = str(caught.value)
    assert message.startswith(f"{variable}: ")
    assert repr(value) in message
    assert remedy in message
    assert message.isprintable()


@pytest.mark.parametrize("token", [TOKEN[:-1], TOKEN.upper(), TOKEN + "\n", f"lease:{TOKEN}"])
def test_a_wrong_token_is_refused_without_being_shown(token):
    with pytest.raises(SettingsError, match=r"^TOKEN: .*write the 32 hexadecimal digits") as caught:
        settings(TOKEN=token)
    assert token.strip() not in str(caught.value)
