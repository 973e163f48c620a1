"""The template environment and what it refuses."""

from datetime import datetime

import pytest

from quire.engine.chat_template import MAX_OUTPUT_CHARACTERS, ChatTemplate, ChatTemplateError, ChatTemplateRefusal

USER = [{"role": "user", "content": "<b>é"}]


def render(source: str, **options: object) -> str:
    return ChatTemplate(source, {"eos_token": "</s>"}).render(USER, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content | tojson }}", '"<b>é"'),
        ("{{ messages | tojson(indent=1) }}", '[\n {\n  "role": "user",\n  "content": "<b>é"\n }\n]'),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}", '{"a":2,"b":1}'),
        ("{% if true %}\n  {% set x = 1 %}\n{{ x }}{% endif %}\n", "1"),
        ("a{% generation %}{{ eos_token }}{% endgeneration %}b", "a</s>b"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ tools is none }}{{ add_generation_prompt }}", "TrueTrue"),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
    ],
)
def test_what_templates_rely_on(source: str, text: str) -> None:
    assert render(source) == text


def test_keyword_arguments_reach_the_template_and_cannot_replace_the_messages() -> None:
    source = "{{ enable_thinking }}{{ messages | length }}"
    assert render(source, template_kwargs={"enable_thinking": False, "messages": []}) == "False1"


def test_the_template_refuses_with_its_own_text() -> None:
    with pytest.raises(ChatTemplateRefusal, match=r"^Roles must alternate$"):
        render("{{ raise_exception('Roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ self.__init__.__globals__ }}",
        "{{ (messages | attr('__class__')).mro() }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'content': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages[0].nothing.at_all }}",
        "{{ 1 / 0 }}",
        "{% for i in range(1000000) %}{% endfor %}",
        "{{ messages | nofilter }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'x' %}",
    ],
)
def test_hostile_and_broken_templates_raise_nothing_else(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


def test_output_is_capped() -> None:
    with pytest.raises(ChatTemplateError, match=str(MAX_OUTPUT_CHARACTERS)):
        render("{% for i in range(90000) %}" + "x" * 100 + "{% endfor %}")


def test_a_syntax_error_names_its_line() -> None:
    with pytest.raises(ChatTemplateError, match=r"^line 3: "):
        ChatTemplate("a\nb\n{% if %}", {})


def test_continuing_needs_a_template_that_shows_the_content() -> None:
    assert render("[{{ messages[0].content }}] end", continue_final_message=True) == "[<b>é"
    assert render("[{{ messages[0].content | trim }}] end", continue_final_message=True) == "[<b>é"
    with pytest.raises(ChatTemplateError, match="does not show"):
        render("nothing", continue_final_message=True)
