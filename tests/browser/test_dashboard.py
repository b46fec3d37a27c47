"""What a person sees and does on the dashboard, in a real browser."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import pytest

RUN = "/runs/gpt-stdlib-7f3a"


def has(words: str) -> str:
    return f"document.body.innerText.includes({json.dumps(words)})"


def texts(selector: str) -> str:
    return f"[...document.querySelectorAll('{selector}')].map(e => e.innerText.trim())"


def click(words: str) -> str:
    return f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {json.dumps(words)}).click()"


@pytest.mark.parametrize("path", ["/", RUN, "/network", "/runs/none-such"])
def test_pages_name_no_other_host(story, path):
    with urllib.request.urlopen(story + path, timeout=30) as answer:
        page = answer.read().decode()
    hosts = set(re.findall(r"(?:src|href|url\(|from)\s*[=(]?\s*[\"']?(https?://[^\"'\s)]+)", page))
    assert not {h for h in hosts if not h.startswith(story)}


@pytest.mark.browser
def test_overview_lists_runs_and_nodes(tab, story):
    tab.open(story)
    tab.wait_for(has("gpt-wide-lr"))
    states = tab.run(texts("tbody .pill"))
    assert [s.split()[-1] for s in states] == ["running", "running", "succeeded", "failed"]
    assert tab.run(texts(".node .pill"))[-1].split()[-1] == "lost"
    assert tab.run("document.querySelectorAll('a.name-link')[1].getAttribute('href')") == RUN


@pytest.mark.browser
def test_the_network_is_drawn_with_its_islands_and_links(tab, story):
    tab.open(story)
    tab.wait_for(has("Islands and links between them"))
    tab.open(story + "/network")
    tab.wait_for("document.querySelectorAll('.chart svg path').length > 10")
    for words in ("9.2 Gbit/s inside, 940 Mbit/s to the others", "node-z", "ib0 10.1.0.4 9.2 Gbit/s", "Island 2"):
        assert tab.run(has(words)), words
    assert tab.run("document.querySelectorAll('tbody tr').length") == 11
    outside = [u for u in tab.requests if u.startswith("http") and not u.startswith(story)]
    assert (outside, tab.errors) == ([], [])


@pytest.mark.browser
def test_a_run_tells_of_its_losses_and_asks_no_other_host(tab, story):
    tab.open(story + RUN)
    tab.wait_for("document.querySelectorAll('.chart svg path').length > 10")
    tab.wait_for(has("e4"))
    for words in ("t3: lost", "t1 was lost", "durable", "epoch 4", "Rank 3"):
        assert tab.run(has(words)), words
    assert tab.run(texts(".member.gone .pill"))[0].split()[-1] == "lost"
    outside = [u for u in tab.requests if u.startswith("http") and not u.startswith(story)]
    assert (outside, tab.errors) == ([], [])


@pytest.mark.browser
def test_updates_change_numbers_and_keep_the_elements(tab, story):
    tab.open(story + RUN)
    tab.wait_for("document.querySelectorAll('.chart svg').length === 3")
    step = "document.querySelector('.tile-value').innerText"
    tab.run("document.querySelectorAll('.tile, .member, .event, .chart svg').forEach(e => { e.kept = true; })")
    before = tab.run(step)
    tab.wait_for(f"{step} !== {json.dumps(before)}")
    assert tab.run("[...document.querySelectorAll('.tile, .chart svg')].every(e => e.kept)")
    assert tab.run("[...document.querySelectorAll('.member, .event')].filter(e => e.kept).length > 8")


@pytest.mark.browser
def test_logs_follow_the_trainer_that_is_chosen(tab, story):
    tab.open(story + RUN)
    tab.wait_for(has("loss"))
    tab.run(click("t5"))
    tab.wait_for("document.querySelector('.tab.on').innerText.trim() === 't5'")
    tab.wait_for("document.querySelector('.log').innerText.includes('ms')")
    assert not tab.run("document.querySelector('.log').innerText.includes('[32m')")


@pytest.mark.browser
def test_stopping_a_run_asks_first(tab, serve):
    with serve("story", 30.0) as url:
        tab.open(url + RUN)
        tab.wait_for(has("Stop this run"))
        tab.run(click("Stop this run"))
        tab.wait_for(has("Stop gpt-stdlib?"))
        tab.run(click("Keep it running"))
        tab.wait_for(f"!{has('Stop gpt-stdlib?')}")
        assert "running" in tab.run(texts(".hero .pill"))[0]
        tab.run(click("Stop this run"))
        tab.wait_for(has("Stop gpt-stdlib?"))
        tab.run(click("Stop at the next step"))
        tab.wait_for("document.querySelector('.hero .pill').innerText.includes('stopped')")
        tab.wait_for("document.querySelector('.hero .button').offsetParent === null")


@pytest.mark.browser
def test_the_theme_follows_the_system_until_it_is_chosen(screenshot, chromium, story):
    theme = "document.documentElement.dataset.theme"
    with screenshot.browser(chromium) as tab:
        tab.prepare(theme="dark")
        tab.open(story)
        assert tab.run(theme) == "dark"
        tab.wait_for(has("Light / dark"))
        tab.run(click("Light / dark"))
        tab.wait_for(f"{theme} === 'light'")
        tab.open(story + RUN)
        assert tab.run(theme) == "light"


@pytest.mark.browser
def test_an_empty_cluster_says_what_to_do_next(tab, serve):
    with serve("empty", 0.0) as url:
        tab.open(url)
        tab.wait_for(has("No run yet"))
        assert tab.run(has("atoll run examples/train_gpt.py"))
        assert tab.run(has("atoll doctor"))
        tab.open(url + "/runs/none-such")
        tab.wait_for(has("No such run"))


@pytest.mark.browser
def test_a_source_that_fails_is_told_in_words(tab, serve):
    with serve("broken", 0.0) as url:
        tab.open(url)
        tab.wait_for(has("does not answer. Run `atoll doctor`."))
        assert tab.run("document.querySelector('.fresh').classList.contains('stale')")


@pytest.mark.browser
def test_charts_go_on_while_no_log_can_be_read(tab, serve):
    with serve("mute", 30.0) as url:
        tab.open(url + RUN)
        tab.wait_for(has("started again within seconds"))
        tab.wait_for("document.querySelectorAll('.chart svg').length === 3")
        assert not tab.run("document.querySelector('.fresh').classList.contains('stale')")


@pytest.mark.browser
def test_a_narrow_screen_scrolls_no_page_sideways(tab, story):
    for path in ("/", RUN):
        tab.prepare(width=390, height=844)
        tab.open(story + path)
        tab.wait_for(has("gpt-stdlib"))
        assert tab.run("document.documentElement.scrollWidth") <= 390


def test_a_run_that_does_not_exist_is_no_server_error(story):
    with urllib.request.urlopen(story + "/runs/none-such", timeout=30) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(story + "/nothing/here", timeout=30)
