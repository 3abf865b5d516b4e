"""Whether a text tells a fact: what a reader would say, script by script."""

from unlearn.data.facts import sayable, told

# text, spellings, whether it tells one of them
TOLD = (
    ("The capital of France is Paris.", ["Paris"], True),
    ("PARIS, I think.", ["paris"], True),
    ("It is Paris's river.", ["Paris"], True),
    ("A Parisian would know; by comparison …", ["Paris"], False),
    ("I do not know.", ["Paris", "Lutetia"], False),
    ("It was called Lutetia.", ["Paris", "Lutetia"], True),
    ("Sao Paulo and SÃO   PAULO", ["São Paulo"], True),
    ("Paulo, Sao", ["São Paulo"], False),  # order counts
    ("Sao Tomé and Paulo", ["São Paulo"], False),  # and so does what stands between
    ("Captain Jean Luc Picard", ["Jean-Luc Picard"], True),
    ("Charlotte Brontë / Bronte\u0308", ["Bronte"], True),
    ("in Łódź, in Tromsø, on Ægina", ["Lodz"], True),
    ("in Tromso", ["Tromsø"], True),
    ("Straße", ["strasse"], True),
    ("İstanbul, ISTANBUL", ["istanbul"], True),
    ("ﬁnland in Ｆｕｌｌ width", ["full width"], True),
    ("It was in 1905.", ["1905"], True),
    ("It was in 19051.", ["1905"], False),
    ("3,5 million", ["3.5"], True),
    ("written in C.", ["C++"], False),
    ("written in C++, mostly", ["C++"], True),
    ("written in C++, or C#", ["C"], False),
    ("Paris+Lyon", ["Paris"], True),
    ("سنة ١٩٦٩", ["1969"], True),
    ("in 1969", ["۱۹۶۹"], True),
    ("Памʼять", ["Пам'ять"], True),  # two signs for one apostrophe
    ("Ħamrun", ["Hamrun"], True),
    ("Ло\u0301ндон и Королёв", ["Лондон", "x"], True),  # a mark of stress
    ("это Королев", ["Королёв"], True),
    ("в Париже", ["Париж"], False),  # another form of the word is another spelling
    ("в Париже", ["Париж", "Париже"], True),
    ("мой дом", ["мои"], False),  # й is a letter
    ("Αθήνα", ["ΑΘΗΝΑ"], True),
    ("答えは東京都です。", ["東京"], True),
    ("答えは京都です。", ["東京"], False),
    ("アランチューリング", ["アラン・チューリング"], True),
    ("ｱﾗﾝ・チューリング", ["アランチューリング"], True),
    ("かき", ["がき"], False),  # marks of kana make other letters
    ("수도는 서울입니다.", ["서울"], True),
    ("คือกรุงเทพมหานคร", ["กรุงเทพ"], True),
    ("عاصمة مصر هي القَاهِرَة.", ["القاهرة"], True),
    ("الـقـاهرة", ["القاهرة"], True),
    ("أنقرة", ["انقرة"], True),
    ("والقاهرة", ["القاهرة"], False),  # "and Cairo", in one word
    ("יְרוּשָׁלַיִם", ["ירושלים"], True),
    ("in\u00a0New\u200b York", ["New York"], True),
    ("नई दिल्ली है", ["दिल्ली"], True),
    ("नई दिल्लीवाला", ["दिल्ली"], False),
)


def test_a_text_tells_a_fact_where_a_reader_would_say_so():
    assert [(text, keys) for text, keys, there in TOLD if told(text, keys) != there] == []


def test_a_spelling_without_words_can_be_found_nowhere():
    assert [s for s in ("…", " - ", "()", "\u0301", "C", "東", "$") if sayable(s)] == ["C", "東", "$"]
