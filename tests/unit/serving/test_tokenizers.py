"""Text to tokens and back in pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ScriptNotFound, SpecError
from atoll.workers.tokenizer_runtime import BytesTokenizer, load

TEXT = "Grüße, 世界! 👩‍👩‍👧 naïve  spaces\n"


@pytest.fixture(scope="module")
def library():
    """A byte-level vocabulary of all bytes and a few pairs, so that characters are split over tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    made.train_from_iterator([TEXT * 3], trainer)
    return made


@pytest.fixture
def from_file(library, tmp_path):
    library.save(str(tmp_path / "tokenizer.json"))
    return load("tokenizer.json", tmp_path)


@pytest.fixture
def words(tmp_path):
    """A vocabulary of words whose spaces belong to no token: a token's text depends on the one before."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(tmp_path / "words.json"))
    return load("words.json", tmp_path)


def pieces(tokenizer, tokens):
    decoder = tokenizer.decoder()
    return [*(decoder.feed(t) for t in tokens), decoder.flush()]


def test_bytes_come_back_as_whole_characters():
    assert pieces(BytesTokenizer(), "aé世".encode()) == ["a", "", "é", "", "", "世", ""]


def test_bytes_that_are_no_text_are_replaced_and_what_is_cut_off_is_shown_at_the_end():
    assert "".join(pieces(BytesTokenizer(), b"a\xffb")) == "a\N{REPLACEMENT CHARACTER}b"
    assert pieces(BytesTokenizer(), "é".encode()[:1]) == ["", "\N{REPLACEMENT CHARACTER}"]


def test_tokens_above_the_bytes_are_no_text():
    assert pieces(BytesTokenizer(), [104, 256, 105, 1000]) == ["h", "", "i", "", ""]


@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_bytes_round_trip(text):
    tokenizer = BytesTokenizer()
    assert "".join(pieces(tokenizer, tokenizer.encode(text))) == text


def test_tokenizer_file_gives_text_in_whole_characters(from_file):
    tokens = from_file.encode(TEXT)
    made = pieces(from_file, tokens)
    assert len(tokens) < len(TEXT.encode())
    assert "".join(made) == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in made)
    assert sum(1 for piece in made if piece) > 5


def test_tokenizer_file_shows_a_cut_off_character_at_the_end(from_file):
    tokens = from_file.encode("龍a")
    assert pieces(from_file, tokens[:1]) == ["", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_are_no_text(from_file, library):
    end = library.token_to_id("<end>")
    tokens = [*from_file.encode("ab"), end, *from_file.encode("c")]
    assert "".join(pieces(from_file, tokens)) == "abc"


def test_spaces_between_words_are_not_lost_in_pieces(words):
    assert pieces(words, [1, 2, 2, 1]) == ["a", " b", " b", " a", ""]


def test_long_answer_is_decoded_in_pieces_of_a_few_tokens(from_file, monkeypatch):
    decoder, seen = from_file.decoder(), []
    library = decoder._library

    class Watched:
        def decode(self, tokens):
            seen.append(len(tokens))
            return library.decode(tokens)

    decoder._library = Watched()
    for token in from_file.encode(TEXT * 10):
        decoder.feed(token)
    assert max(seen) < 12


def test_missing_tokenizer_file_names_the_path(tmp_path):
    with pytest.raises(ScriptNotFound, match=r"no file .*none\.json"):
        load("none.json", tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_file_that_is_no_tokenizer_is_named(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(SpecError, match=r"t\.json is no tokenizer\.json"):
        load("t.json", tmp_path)
