"""The variables: what they accept, and what is said of what they do not."""

from pathlib import Path

import pytest

from app.settings import Settings, SettingsError
from sidecar.protocol import Address, Mode


def test_the_defaults_are_those_of_the_readme():
    settings = Settings.from_env({})

    assert settings == Settings(
        redis_addresses=(Address("127.0.0.1", 6379),),
        redis_username=None,
        redis_password=None,
        redis_password_also=None,
        sidecar_redis_addresses="127.0.0.1:6379",
        sidecar_redis_username=None,
        sidecar_redis_password=None,
        sidecar_image="ghcr.io/kaidotio/at-least-semaphore-pod-hook:0.1.0",
        sidecar_mode=Mode.NATIVE,
        sidecar_requests={"cpu": "5m", "memory": "16Mi"},
        sidecar_limits={"cpu": "250m", "memory": "64Mi"},
        reservation_seconds=300,
        admission_budget_seconds=2.0,
        cert_dir=Path("/var/k8s-webhook-server/serving-certs"),
        bind="0.0.0.0:9443",
        metrics_port=8080,
        metrics_semaphores=1000,
        web_concurrency=1,
        waiting_allowed=False,
        variant="",
    )


def test_every_variable_is_read():
    settings = Settings.from_env(
        {
            "REDIS_ADDRESSES": "redis-0.redis:6379, redis-1.redis:6380,[::1]:6381",
            "REDIS_USERNAME": "hook",
            "REDIS_PASSWORD": "secret",
            "REDIS_PASSWORD_ALSO": "the one before",
            "SIDECAR_REDIS_ADDRESSES": "a:1,b:1,c:1",
            "SIDECAR_REDIS_USERNAME": "sidecar",
            "SIDECAR_REDIS_PASSWORD": "other",
            "SIDECAR_IMAGE": "registry.example/hook@sha256:0",
            "SIDECAR_MODE": "container",
            "SIDECAR_REQUESTS": "memory=20Mi, ephemeral-storage=0.5G",
            "SIDECAR_LIMITS": "none",
            "RESERVATION_SECONDS": "60",
            "ADMISSION_BUDGET_SECONDS": "0.5",
            "CERT_DIR": "/tls",
            "BIND": "[::]:443",
            "METRICS_PORT": "9090",
            "METRICS_SEMAPHORES": "20",
            "WEB_CONCURRENCY": "4",
            "WAITING_ALLOWED": "true",
            "VARIANT": "blue",
        }
    )

    assert settings == Settings(
        redis_addresses=(Address("redis-0.redis", 6379), Address("redis-1.redis", 6380), Address("::1", 6381)),
        redis_username="hook",
        redis_password="secret",
        redis_password_also="the one before",
        sidecar_redis_addresses="a:1,b:1,c:1",
        sidecar_redis_username="sidecar",
        sidecar_redis_password="other",
        sidecar_image="registry.example/hook@sha256:0",
        sidecar_mode=Mode.CONTAINER,
        sidecar_requests={"memory": "20Mi", "ephemeral-storage": "0.5G"},
        sidecar_limits={},
        reservation_seconds=60,
        admission_budget_seconds=0.5,
        cert_dir=Path("/tls"),
        bind="[::]:443",
        metrics_port=9090,
        metrics_semaphores=20,
        web_concurrency=4,
        waiting_allowed=True,
        variant="blue",
    )
    assert 0.125 == settings.node_patience_seconds


def test_sidecars_use_the_webhooks_addresses_unless_told_others():
    addresses = "redis-0:6379,redis-1:6379,redis-2:6379"

    assert addresses == Settings.from_env({"REDIS_ADDRESSES": addresses}).sidecar_redis_addresses


def test_an_empty_variable_counts_as_unset():
    """As a manifest leaves it that fills it from an optional key of a Secret."""
    assert Settings.from_env({}) == Settings.from_env({"VARIANT": "", "METRICS_PORT": " ", "REDIS_PASSWORD": ""})


def test_passwords_do_not_show_when_settings_are_printed():
    settings = Settings.from_env({"REDIS_PASSWORD": "hush", "SIDECAR_REDIS_PASSWORD": "hush"})

    assert "hush" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("REDIS_ADDRESSES", "redis-0", "'redis-0' is not an address; write host:port, separated by commas"),
        ("REDIS_ADDRESSES", "redis-0:0", "'redis-0:0' is not an address"),
        ("REDIS_ADDRESSES", "redis-0:99999", "'redis-0:99999' is not an address"),
        ("REDIS_ADDRESSES", "redis://a:1", "'redis://a:1' is not an address"),
        ("REDIS_ADDRESSES", "redis://hook:hush@a:1", "'…@a:1' is not an address"),
        ("REDIS_ADDRESSES", "a:1,,b:2", "'' is not an address"),
        ("REDIS_ADDRESSES", "a:1,b:1", "has 2 addresses; give an odd number, usually 3"),
        ("REDIS_ADDRESSES", "a:1,a:1,b:1", "names an address twice"),
        ("REDIS_USERNAME", "hook", "'hook' has no password; set REDIS_PASSWORD as well"),
        ("REDIS_ADDRESSES", "a..b:1", "'a..b:1' is not an address"),
        ("REDIS_ADDRESSES", f"{'a' * 64}:1", "is not an address"),
        ("SIDECAR_REDIS_ADDRESSES", "x", "'x' is not an address"),
        ("SIDECAR_REDIS_ADDRESSES", "a:1,b:1,c:1", "names 3 nodes, REDIS_ADDRESSES 1; name the same nodes"),
        ("SIDECAR_REDIS_USERNAME", "sidecar", "'sidecar' has no password; set SIDECAR_REDIS_PASSWORD as well"),
        ("SIDECAR_IMAGE", "a b", "'a b' is not the name of an image"),
        ("SIDECAR_MODE", "Native", "'Native' is not a mode; write native, or container for Kubernetes before 1.29"),
        ("SIDECAR_REQUESTS", "5m", "'5m' is not accepted; write such as cpu=250m,memory=64Mi, or none"),
        ("SIDECAR_REQUESTS", "cpu=5m;memory=1Mi", "is not accepted; write such as"),
        ("SIDECAR_REQUESTS", "gpu=1", "'gpu=1' is not accepted"),
        ("SIDECAR_LIMITS", "memory=-1", "'memory=-1' is not accepted"),
        ("SIDECAR_LIMITS", "cpu=1,cpu=2", "'cpu=1,cpu=2' names a resource twice"),
        ("RESERVATION_SECONDS", "4", "'4' is not accepted; write a whole number of seconds from 5 to 86400"),
        ("RESERVATION_SECONDS", "60.5", "'60.5' is not accepted; write a whole number of seconds from 5 to 86400"),
        ("RESERVATION_SECONDS", "-60", "'-60' is not"),
        ("ADMISSION_BUDGET_SECONDS", "0", "'0' is not accepted; write a number of seconds from 0.2 to 25"),
        ("ADMISSION_BUDGET_SECONDS", "nan", "'nan' is not"),
        ("ADMISSION_BUDGET_SECONDS", "2s", "'2s' is not"),
        ("BIND", "9443", "'9443' is not where one can listen; write address:port, such as 0.0.0.0:9443"),
        ("METRICS_PORT", "http", "'http' is not accepted; write a port from 1 to 65535"),
        ("METRICS_PORT", "٨٠", "'٨٠' is not accepted; write a port from 1 to 65535"),
        ("WEB_CONCURRENCY", "0", "'0' is not accepted; write a number of workers from 1 to 1000"),
        ("WAITING_ALLOWED", "True", "'True' is not accepted; write true or false"),
        ("WAITING_ALLOWED", "1", "'1' is not accepted; write true or false"),
        ("VARIANT", "Blue", "'Blue' is not a DNS label of at most 20 characters (a-z, 0-9, -)"),
        ("VARIANT", "a" * 21, "is not a DNS label"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable_and_the_remedy(variable, value, said):
    with pytest.raises(SettingsError) as error:
        Settings.from_env({variable: value})

    assert str(error.value).startswith(f"{variable}: ")
    assert said in str(error.value)


def test_sidecars_without_a_password_are_refused_where_the_webhook_has_one():
    """Every admitted pod would wait for a sidecar that may do nothing."""
    with pytest.raises(SettingsError, match="SIDECAR_REDIS_PASSWORD: not set, though the nodes ask the webhook for"):
        Settings.from_env({"REDIS_PASSWORD": "secret"})
