import pytest

from presswork.errors import ConfigError
from presswork.settings import Settings


def test_defaults_and_values():
    assert Settings.from_env({}) == Settings(threads=None, log="warning")
    assert Settings.from_env({"PRESSWORK_THREADS": "3", "PRESSWORK_LOG": "DEBUG"}) == Settings(threads=3, log="debug")


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"PRESSWORK_THREADS": "0"}, "got .0."),
        ({"PRESSWORK_THREADS": "two"}, "got 'two'"),
        ({"PRESSWORK_LOG": "loud"}, "one of debug, info"),
        ({"PRESSWORK_THREAD": "2"}, "did you mean PRESSWORK_THREADS"),
    ],
)
def test_bad_values_are_named(environ, message):
    with pytest.raises(ConfigError, match=message):
        Settings.from_env(environ)
