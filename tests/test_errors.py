"""Errors: one tree, and each can be sent between processes."""

from __future__ import annotations

import pickle

import pytest

from wsi_ats import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_pickling_with_its_message(kind):
    error = kind("a.svs", "a problem") if issubclass(kind, errors.SlideError) else kind("a problem")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_one_root_and_is_in_the_documented_tree(kind):
    assert issubclass(kind, errors.WsiAtsError)
    assert kind.__name__ in str(errors.__doc__)


def test_an_error_of_a_slide_names_it():
    error = errors.MppError("scans/a.svs", "0 micrometres per pixel")
    assert str(error) == "scans/a.svs: 0 micrometres per pixel"
    assert (error.path, error.problem) == ("scans/a.svs", "0 micrometres per pixel")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            "https://h/a.svs?X-Amz-Date=1&X-Amz-Signature=ab",
            "https://h/a.svs?X-Amz-Date=1&X-Amz-Signature=***",
        ),
        ("https://h/a.svs?sv=1&sig=a%2Fb%3D", "https://h/a.svs?sv=1&sig=***"),
        ("https://h/a.svs?X-Amz-Credential=me/1/s3&x=1", "https://h/a.svs?X-Amz-Credential=***&x=1"),
        (
            "https://h/a.svs?AWSAccessKeyId=me&Signature=a+b=",
            "https://h/a.svs?AWSAccessKeyId=***&Signature=***",
        ),
        ("https://me:se:cret@h:80/a.svs", "https://***@h:80/a.svs"),
        ("s3://b/a.svs?versionId=1", "s3://b/a.svs?versionId=1"),
        ("/scans/me:1@home.svs", "/scans/me:1@home.svs"),
    ],
)
def test_messages_do_not_leak_credentials(url, told):
    assert str(errors.SlideOpenError(url, f"no such file ({url}), or {url!r}.")) == (
        f"{told}: no such file ({told}), or '{told}'."
    )
    assert str(errors.ManifestError(f"{url}: no such file")) == f"{told}: no such file"
    assert errors.SlideOpenError(url, "no such file").path == url
