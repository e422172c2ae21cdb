"""Tests of image URLs, allowed and refused."""

import base64

import pytest

from embedroute.errors import InvalidRequest
from embedroute.protocol import LARGEST_IMAGE, PIECE, check_media

DOMAINS = frozenset({"img.example", "kite.example", "a.b-c.example"})
START = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff\xe0",
    "image/webp": b"RIFF\n\0\0\0WEBPVP8 ",
    "image/gif": b"GIF89a",
}


def data_url(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def fault(url):
    with pytest.raises(InvalidRequest) as caught:
        check_media(url, DOMAINS, "input[0]")
    assert (caught.value.code, caught.value.param) == ("invalid_media_url", "input[0]")
    return caught.value.message.removeprefix("'input[0]' ")


@pytest.mark.parametrize(
    "url",
    [
        *(data_url(kind, start + b"\0" * 9) for kind, start in START.items()),
        data_url("image/gif", b"GIF87a"),
        data_url("image/gif", b"GIF87a".ljust(LARGEST_IMAGE, b"\0")),
        "https://img.example",
        "https://img.example/",
        "https://img.example/A/b.png?Q=1#f",
        "https://img.example?x=1",
        "https://img.example:443/a.png",
        "https://IMG.example/a.png",
        "HTTPS://img.example/a.png",
        "https://a.b-c.example/%41",
        "https://img.example/" + "a" * (8192 - 20),
    ],
)
def test_accepts_images_and_listed_hosts(url):
    check_media(url, DOMAINS, "input")


HOST = (
    "must be a data: URL, or an https: URL with a host name (no IP address), port 443 and "
    "no user info."
)
TYPES = (
    "must be a base64 data: URL with one of these media types: "
    "image/png, image/jpeg, image/webp, image/gif."
)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", HOST),
        ("x", HOST),
        ("/etc/passwd", HOST),
        ("file:///etc/passwd", HOST),
        ("http://img.example/a.png", HOST),
        ("ftp://img.example/a", HOST),
        ("https:/img.example/a", HOST),
        ("https:///a.png", HOST),
        (" https://img.example/", HOST),
        ("https://img.example/ ", HOST),
        ("https://img.example/a\r\nX: y", HOST),
        ("https://img\t.example/a", HOST),
        ("https://img.example/\0", HOST),
        ("https://img.example\\@evil.example/", HOST),
        ("https://img.example/\\", HOST),
        ("https://user@img.example/", HOST),
        ("https://img.example:443@evil.example/", HOST),
        ("https://img.example:80/", HOST),
        ("https://img.example:/", HOST),
        ("https://img.example:00443/", HOST),
        ("https://img.example./", HOST),
        ("https://.img.example/", HOST),
        ("https://[::1]/", HOST),
        ("https://127.0.0.1/", HOST),
        ("https://127.1/", HOST),
        ("https://2130706433/", HOST),
        ("https://0x7f.1/", HOST),
        ("https://0177.0.0.1/", HOST),
        (
            "https://evil.example/",
            "names a host that is not listed in this gateway's media_domains.",
        ),
        (
            "https://sub.img.example/",
            "names a host that is not listed in this gateway's media_domains.",
        ),
        (
            "https://img.example.evil.example/",
            "names a host that is not listed in this gateway's media_domains.",
        ),
        (
            "https://\u212aite.example/",
            "must be ASCII. Write the host name in punycode and percent-encode the rest.",
        ),
        (
            "https://img.example/\u00e9",
            "must be ASCII. Write the host name in punycode and percent-encode the rest.",
        ),
        ("https://img.example/" + "a" * 8192, "is longer than 8192 characters."),
        ("data:", TYPES),
        ("data:;base64,AAAA", TYPES),
        ("data:text/html;base64,AAAA", TYPES),
        ("data:image/svg+xml;base64,PHN2Zy8+", TYPES),
        ("data:image/png,AAAA", TYPES),
        ("data:image/png;charset=utf-8;base64,AAAA", TYPES),
        ("DATA:image/png;base64,AAAA", HOST),
        ("data:image/png;base64,AA AA", "is not strict base64."),
        ("data:image/png;base64,AAA", "is not strict base64."),
        ("data:image/png;base64,AAAA====", "is not strict base64."),
        ("data:image/png;base64,AAAA=", "is not strict base64."),
        ("data:image/png;base64,====", "is not strict base64."),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "is not strict base64."),
        ("data:image/png;base64,_-_-", "is not strict base64."),
        ("data:image/png;base64,", "does not begin with the signature of image/png."),
        ("data:image/png;base64,/9j/4AAQ", "does not begin with the signature of image/png."),
        (data_url("image/gif", b"xGIF89a"), "does not begin with the signature of image/gif."),
        (
            data_url("image/webp", b"RIFF\0\0\0\0WAVE"),
            "does not begin with the signature of image/webp.",
        ),
        (
            data_url("image/gif", b"GIF87a".ljust(LARGEST_IMAGE + 1, b"\0")),
            f"holds an image of more than {LARGEST_IMAGE} bytes.",
        ),
        (
            data_url("image/gif", b"GIF87a".ljust(LARGEST_IMAGE + 2, b"\0")),
            f"holds an image of more than {LARGEST_IMAGE} bytes.",
        ),
        (
            "data:image/png;base64," + "A" * (LARGEST_IMAGE // 3 * 4 + 8),
            f"holds an image of more than {LARGEST_IMAGE} bytes.",
        ),
    ],
)
def test_refuses_other_urls_with_the_reason(url, message):
    assert message == fault(url)


def test_allows_no_host_by_default():
    with pytest.raises(InvalidRequest):
        check_media("https://img.example/", frozenset(), "input")


@pytest.mark.parametrize("count", [1, 2, 3, PIECE // 4 * 3 - 1, PIECE // 4 * 3, PIECE // 4 * 3 + 1])
def test_accepts_padding_wherever_pieces_end(count):
    image = START["image/gif"].ljust(count, b"\0") if count > 6 else START["image/gif"]
    url = data_url("image/gif", image)
    check_media(url, DOMAINS, "input")

    if url.endswith("="):
        assert "is not strict base64." == fault(url + "AAAA")
