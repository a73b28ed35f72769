from collections import Counter

import pytest

from capfilt.miniature.alt_texts import AltKind
from capfilt.miniature.distort import Edit, Encoding
from capfilt.miniature.hostile import Hostile
from capfilt.miniature.pages import Behaviour, MiniWeb, truth_from_json, truth_to_json
from capfilt.miniature.truth import is_true
from capfilt.miniature.web import build_web, page_url, url_list
from capfilt.miniature.world import mirrored, scene_from_json


@pytest.fixture(scope="module")
def web() -> MiniWeb:
    return build_web(0, num_pages=200)


def test_the_web_has_as_many_pages_as_asked_for():
    assert [len(build_web(0, num_pages=num).pages) for num in (40, 41, 97)] == [40, 41, 97]


def test_a_web_without_room_for_its_kinds_is_not_built():
    with pytest.raises(AssertionError, match="39 pages have no room for all; 40 have"):
        build_web(0, num_pages=39)


def test_the_same_seed_gives_the_same_web_and_another_seed_another():
    assert build_web(3, num_pages=60) == build_web(3, num_pages=60)
    assert build_web(3, num_pages=60) != build_web(4, num_pages=60)


def test_no_two_pages_have_the_same_path(web):
    assert len({page.path for page in web.pages}) == len(web.pages)


def test_every_kind_of_page_occurs(web):
    assert {page.alt_kind for page in web.pages} == set(AltKind)
    assert {page.hostile for page in web.pages} == {None, *Hostile}
    assert {page.behaviour for page in web.pages} == set(Behaviour)
    assert {page.picture.edit for page in web.pages} == set(Edit)
    assert {page.picture.encoding for page in web.pages} == set(Encoding)


def test_an_alt_text_is_true_if_and_only_if_it_is_of_the_kind_true(web):
    for row in web.truth():
        assert row.alt_is_true == (row.alt_kind == "true"), row


def test_less_than_half_of_the_alt_texts_are_true(web):
    assert 80 <= sum(row.alt_is_true for row in web.truth()) <= 90  # 42 % of 200


def test_a_wrong_attribute_is_a_statement_that_is_false(web):
    wrong = [page for page in web.pages if page.alt_kind is AltKind.WRONG_ATTRIBUTE]
    assert all(is_true(page.alt_text, page.scene) is False for page in wrong)


def test_one_page_in_eight_must_be_lost(web):
    assert sum(bool(page.expected) for page in web.pages) == 26  # 13 % of 200


def test_copies_show_what_their_original_shows(web):
    by_path = {page.path: page for page in web.pages}
    assert all(page.scene == by_path[page.group].scene for page in web.pages)
    sizes = Counter(page.group for page in web.pages)
    assert sum(size - 1 for size in sizes.values()) == 46  # 22 % copies and 1 % redirects of 200


def test_copies_have_alt_texts_of_their_own(web):
    originals = {page.path: page for page in web.pages}
    copies = [page for page in web.pages if page.group != page.path]
    alike = sum(page.alt_text == originals[page.group].alt_text for page in copies)
    assert alike < len(copies) / 4


def test_a_mirror_image_is_no_copy_and_shows_the_mirrored_scene(web):
    for page in web.pages:
        if page.picture.edit is Edit.MIRRORED and page.group == page.path:
            assert page.scene == mirrored(page.picture.drawn) != page.picture.drawn


def test_sound_pages_that_are_no_copies_differ_in_colours_or_cells(web):
    originals = [page for page in web.pages if not page.expected and page.group == page.path]
    layouts = {tuple((t.colour, t.cell) for t in page.scene.things) for page in originals}
    assert len(layouts) == len(originals)


def test_redirects_lead_to_a_sound_page_of_their_group(web):
    by_path = {page.path: page for page in web.pages}
    redirects = [page for page in web.pages if page.behaviour is Behaviour.REDIRECT]
    assert redirects and all(by_path[page.target].expected == () for page in redirects)
    assert all(by_path[page.target].group == page.group for page in redirects)


def test_the_url_list_has_each_page_in_order_with_its_alt_text(web):
    rows = url_list(web, "http://127.0.0.1:9")
    assert [text for _, text in rows] == [page.alt_text for page in web.pages]
    served = [url for url, _ in rows if url.startswith("http://127.0.0.1:9/pictures/")]
    assert len(served) == len(rows) - 1  # one page has a URL that must be refused


def test_a_path_that_is_a_url_stays_as_it_is():
    assert page_url("file:///etc/hostname?3", "http://h") == "file:///etc/hostname?3"
    assert page_url("/pictures/1.jpg", "http://h") == "http://h/pictures/1.jpg"


def test_json_gives_the_truth_back(web):
    truth = web.truth()
    assert truth_from_json(truth_to_json(truth)) == truth
    assert [scene_from_json(row.scene) for row in truth] == [page.scene for page in web.pages]
