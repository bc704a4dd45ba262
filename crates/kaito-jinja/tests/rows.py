"""The templates of the table, by section."""

import itertools

VARIABLES = {
    "s": "Hello, World! hällo straße ǆ ΑΣ",
    "empty": "",
    "words": "the quick  brown\tfox\njumps over\r\nthe lazy-dog and well-known e-mail -- addresses",
    "html": "<p class=\"a\">Tom &amp; 'Jerry'</p><!-- no --> &lt;x&gt; &eacute;&copy &#65;&#x42;&notit; &bogus; a < b",
    "n": 42,
    "neg": -7,
    "big": 12345678901234567890,
    "f": 3.14159,
    "half": 2.5,
    "yes": True,
    "no": False,
    "nothing": None,
    "numbers": [3, 1, 2, 10, -5],
    "floats": [0.1, 1e16, 1e-5, 123456789.123, -0.0, 1e100],
    "names": ["bob", "Alice", "carol", "Bob", "ALICE"],
    "mixed": [1, "a", None, True, 2.5, [1, 2], {"k": "v"}],
    "nested": [[1, 2], [3, [4, 5]], []],
    "d": {"b": 1, "a": 2, "C": 3, "items": "shadowed", "x y": 5},
    "users": [
        {"name": "bob", "age": 30, "active": True, "city": {"name": "Rome"}},
        {"name": "Alice", "age": 25, "active": False, "city": {"name": "oslo"}},
        {"name": "carol", "age": 30, "active": True, "city": {"name": "rome"}},
        {"name": "dave", "active": True},
    ],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hällo there \n"},
        {"role": "assistant", "content": "Yes"},
    ],
    "long": [{"name": "get_weather", "description": "Gives the weather of a city that is named in its argument"},
             {"name": "stop", "parameters": {"type": "object", "properties": {"why": {"type": "string"}}}}],
    "tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}, {"v": 5, "c": []}],
    "odd": "tab\tnew\nquote'\"back\\slash\u00a0nbsp\u200bzero\x7f\x00\U0001f600",
}


def prints(*expressions):
    return ["{{ " + expression + " }}" for expression in expressions]


def lines(text):
    return prints(*[line.strip() for line in text.strip().split("\n") if line.strip()])


def filters():
    values = ["s", "empty", "n", "neg", "f", "yes", "nothing", "numbers", "names", "d", "undef", "users", "html", "(1, 'a')",
              "range(3)", "'x'|safe"]
    every = [
        "abs", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "filesizeformat", "first", "float",
        "forceescape", "format", "indent", "int", "join", "last", "length", "list", "lower", "items|list", "min", "max",
        "pprint", "reverse|list", "round", "safe", "sort", "string", "striptags", "sum", "title", "trim", "truncate",
        "unique|list", "upper", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr", "tojson", "map('upper')|list",
        "select|list", "reject|list", "slice(2)|list", "batch(2)|list", "items", "reverse", "map", "replace('l', 'L')",
        "attr('upper')", "random",
    ]
    out = prints(*[f"{value}|{name}" for value, name in itertools.product(values, every)])
    out += lines(r"""
        -3|abs
        true|abs
        -2.5|abs
        users[0]|attr('name')
        d|attr('b')
        's'|attr('upper')
        's'|attr('upper')()
        's'|attr('__class__')
        d|attr('update')
        namespace(a=1)|attr('a')
        numbers|batch(2)|list
        numbers|batch(3, 'x')|list
        numbers|batch(0)|list
        numbers|batch(linecount=4, fill_with=0)|list
        []|batch(2)|list
        'abc'|batch(2)|map('join')|list
        numbers|batch
        'x'|center(5)
        'xy'|center(5) ~ '|'
        'xy'|center(width=6) ~ '|'
        'x'|center(0)
        'x'|center('a')
        undef|default('d')
        ''|default('d')
        ''|default('d', true)
        ''|default('d', boolean=true)
        ''|default(default_value='e', boolean=1)
        nothing|default('d')
        nothing|d('d', true)
        undef.x|default('d')
        users[0].missing|default('m')
        false|default(true)
        undef|default
        d|dictsort
        d|dictsort(true)
        d|dictsort(false, 'value')
        {'a': 3, 'b': 1, 'c': 2}|dictsort(by='value', reverse=true)
        d|dictsort(by='x')
        {1: 2, 'a': 3}|dictsort
        [1]|dictsort
        '<a href="x">\'&'|e
        ('<b>'|safe)|e
        ('<b>'|safe)|forceescape
        5|e
        none|escape
        [1, '<']|escape
        1|filesizeformat
        999|filesizeformat
        1000|filesizeformat
        1024|filesizeformat(true)
        1023|filesizeformat(binary=true)
        123456789|filesizeformat
        1.5e24|filesizeformat
        1e30|filesizeformat
        1e30|filesizeformat(true)
        '1500'|filesizeformat
        'x'|filesizeformat
        -5|filesizeformat
        0.5|filesizeformat
        []|first
        []|first is defined
        []|last is undefined
        d|first
        d|last
        'abc'|first
        'abc'|last
        {}.items()|last
        d.values()|last
        d.items()|first
        (numbers|map('abs'))|first
        (numbers|map('abs'))|last
        range(5)|last
        5|first
        '3.5'|float
        'x'|float
        'x'|float(1)
        'x'|float(default='q')
        ' 1e3 '|float
        'inf'|float
        '-Infinity'|float
        'nan'|float
        '1_000.5'|float
        '1__0'|float
        '_1'|float
        'infinit'|float
        '٣.٥'|float
        true|float
        none|float
        []|float(2.5)
        '0x10'|float
        '.5'|float
        '5.'|float
        '.'|float
        '1e'|float
        '%s-%s'|format('a', 1)
        '%(x)s'|format(x=3)
        '%(x)s %s'|format(3, x=3)
        '%d%%'|format(50)
        '%s'|format
        'abc'|format
        'abc'|format(1)
        users|groupby('age')
        users|groupby('age', default=0)
        users|groupby('city.name')|list
        users|groupby(attribute='active')
        users[:3]|groupby('city.name', case_sensitive=true)
        users[:3]|groupby('city.name')|map(attribute='grouper')|list
        users[:3]|groupby('city.name')|map(attribute='list')|map('length')|list
        users[:3]|groupby('age')|map(attribute=0)|list
        [1, 2]|groupby('x')
        [[1, 2], [1, 3]]|groupby(0)
        'a\nb\n\nc'|indent
        'a\nb\n\nc'|indent(2)
        'a\nb\n\nc'|indent(2, true)
        'a\nb\n\nc'|indent(width=1, first=true, blank=true)
        'a\nb\n\nc'|indent('> ')
        'a\nb'|indent('> ', true)
        'a\r\nb\x0bc\u2028d\n'|indent(1)
        ''|indent(2, true)
        ('<a>\nb'|safe)|indent(1)|tojson
        'a\nb'|indent(-1)
        'a\nb'|indent(1.5)
        5|indent
        '42'|int
        '42.9'|int
        'x'|int
        'x'|int(7)
        'x'|int(default=none)
        '0x1A'|int(0, 16)
        '1A'|int(base=16)
        '0b11'|int(0, 2)
        '0o17'|int(0, 0)
        '017'|int(0, 0)
        '017'|int
        '00'|int(5, 0)
        'z'|int(0, 36)
        'z'|int(0, 37)
        ' 7 '|int
        '1_0'|int
        '1__0'|int
        '-5'|int
        '+5'|int
        '- 5'|int
        '٣'|int
        '１２'|int
        3.9|int
        -3.9|int
        true|int
        none|int
        none|int(3)
        []|int
        1e3|int
        '1e3'|int
        'inf'|int
        'inf'|float|int
        'nan'|float|int
        '99999999999999999999'|int
        'x'|int(0, 'a')
        numbers|join
        numbers|join(', ')
        numbers|join(d='-')
        users|join(', ', attribute='name')
        users|join(', ', 'age')
        'abc'|join('-')
        d|join('-')
        [none, true, 1.0]|join(' ')
        ['<', '<b>'|safe]|join('&')
        numbers|join(1)
        5|join
        [undef, 1]|join('-')
        numbers|list
        'äb'|list
        d|list
        d.items()|list
        range(3)|list
        5|list
        undef|list
        users|map(attribute='name')|list
        users|map(attribute='age', default=0)|list
        users|map(attribute='city.name')|list
        users|map(attribute='city.name', default='?')|list
        users|map(attribute='x')|list
        users|map(attribute='name', x=1)|list
        names|map('upper')|join(',')
        names|map('replace', 'b', 'x')|list
        names|map('truncate', length=3, end='', leeway=0)|list
        names|map('nofilter')|list
        names|map(undef)|list
        names|map|list
        []|map|list
        []|map('nofilter')|list
        nothing|map('upper')|list
        5|map('abs')|list
        nested|map('length')|list
        nested|map(attribute=0)|list
        nested|map('first')|list
        'abc'|map('upper')|list
        names|map('lower')|map('capitalize')|join
        numbers|min
        numbers|max
        names|min
        names|max(true)
        names|min(case_sensitive=true)
        users[:3]|max(attribute='age')
        users[:3]|min(attribute='city.name')
        []|min
        []|max is undefined
        [1, 'a']|min
        'hello'|max
        d|max
        nested|pprint
        users|pprint
        long|pprint
        (long[0].description * 3)|pprint
        [long[0].description * 3]|pprint
        {'k': long[0].description * 3, 'z': (1,)}|pprint
        ('a' * 100)|pprint
        ('line one\nline two is rather longer than that\n' * 3)|pprint
        [[1] * 40, (1,) * 40]|pprint
        {}|pprint
        ('x'|safe)|pprint
        {'b': {'y': 1, 'x': 2}, 'a': 1}|pprint
        {1: 'a', 'b': 2}|pprint
        []|random
        ['only']|random
        ''|random
        numbers|reject('odd')|list
        numbers|reject|list
        mixed|reject|list
        numbers|reject('gt', 2)|list
        users|rejectattr('active')|map(attribute='name')|list
        users|rejectattr('age', 'defined')|map(attribute='name')|list
        users|rejectattr('name', 'equalto', 'bob')|map(attribute='name')|list
        users|rejectattr|list
        'aaa'|replace('a', 'b')
        'aaa'|replace('a', 'b', 2)
        'aaa'|replace('a', 'b', count=1)
        'aaa'|replace('a', 'b', -1)
        'aaa'|replace('a', 'b', 0)
        'abc'|replace('', '-')
        'abc'|replace('', '-', 2)
        'abc'|replace(old='b', new='')
        123|replace(2, 'x')
        none|replace('None', 'x')
        'abc'|replace('b')
        ('<a>'|safe)|replace('a', '<')
        'aaa'|replace('a', 'b', 'c')
        'abc'|reverse
        numbers|reverse|list
        numbers|reverse
        d|reverse|list
        d.items()|reverse|list
        range(4)|reverse|list
        (1, 2)|reverse|list
        (numbers|map('abs'))|reverse
        5|reverse
        42.55|round
        42.55|round(1)
        42.55|round(1, 'floor')
        42.55|round(1, 'ceil')
        42.5|round
        43.5|round
        0.5|round
        1.5|round|int
        2.675|round(2)
        1234.5|round(-2)
        1250.0|round(-2)
        1350.0|round(-2)
        150|round(-2)
        250|round(-2)
        -250|round(-2)
        42|round
        42|round(1)
        42|round(0, 'ceil')
        42|round(precision=none)
        42.7|round(none)
        true|round
        42.55|round(method='x')
        42.55|round('a')
        'x'|round
        1e300|round(2)
        0.1|round(20)
        -42.55|round(0, 'floor')
        2.5|round(-400)
        '<b>'|safe
        ('<b>'|safe)|tojson
        ['<b>'|safe]
        5|safe
        numbers|select('odd')|list
        numbers|select('gt', 2)|list
        numbers|select('divisibleby', 3)|list
        numbers|select('in', [1, 2])|list
        mixed|select|list
        mixed|select('string')|list
        numbers|select('notest')|list
        numbers|select(none)|list
        []|select('notest')|list
        users|selectattr('active')|map(attribute='name')|list
        users|selectattr('age', 'gt', 26)|list
        users|selectattr('age', 'defined')|map(attribute='name')|list
        users|selectattr('city.name', 'eq', 'Rome')|map(attribute='name')|list
        users|selectattr('name', 'in', ['bob', 'dave'])|map(attribute='age')|list
        users|selectattr|list
        messages|selectattr('role', '==', 'user')|list
        messages|selectattr('role', 'equalto', 'user')|first
        numbers|slice(2)|list
        numbers|slice(3, 'x')|list
        numbers|slice(10)|list
        numbers|slice(slices=2, fill_with=0)|list
        numbers|slice(0)|list
        numbers|slice(-1)|list
        numbers|slice
        numbers|sort
        numbers|sort(true)
        numbers|sort(reverse=true)
        names|sort
        names|sort(case_sensitive=true)
        names|sort(reverse=true)
        users[:3]|sort(attribute='age')|map(attribute='name')|list
        users[:3]|sort(attribute='age,name')|map(attribute='name')|list
        users[:3]|sort(attribute='city.name', reverse=true)|map(attribute='name')|list
        users|sort(attribute='age')
        mixed|sort
        [[2, 1], [1, 5], [1, 2]]|sort
        [(1, 'b'), (1, 'A')]|sort
        [true, 0, 0.5]|sort
        'hello'|sort
        d|sort
        nested[:1]|sort
        [none, none]|sort
        5|string
        none|string
        [1.0, 'a']|string
        undef|string
        ('<b>'|safe)|string
        html|striptags
        ('<b>x</b>'|safe)|striptags
        'a <b'|striptags
        'a <!-- b'|striptags
        '<!-->x'|striptags
        '&amp;lt;'|striptags
        5|striptags
        numbers|sum
        users[:3]|sum(attribute='age')
        users[:3]|sum('age', 100)
        numbers|sum(start=0.5)
        [[1], [2]]|sum(start=[])
        ['a']|sum
        ['a']|sum(start='')
        []|sum
        floats|sum
        'hello world-foo (bar) [baz] {q <r'|title
        "it's o'neil's"|title
        'ǆ ßa ﬁ'|title
        'ÉCOLE été'|title
        ''|title
        '  x  '|trim
        'xxaxx'|trim('x')
        'xyaxy'|trim(chars='yx')
        '\u00a0\u3000 x\x1c'|trim
        '  x '|trim(none)
        5|trim
        'x'|trim(5)
        'hello world foo'|truncate(8)
        'hello world foo'|truncate(8, true)
        'hello world foo'|truncate(9, killwords=true, end='')
        'hello world foo'|truncate(10)
        'hello world foo'|truncate(11, false, '...', 0)
        'hello world foo'|truncate(5, end='…', leeway=0)
        'hello world foo'|truncate(2)
        'hello world foo'|truncate(3, leeway=-1)
        'hello'|truncate(3)
        ('a ' * 200)|truncate
        [1, 2, 3]|truncate(3)
        5|truncate
        ['a', 'A', 'b', 'a']|unique|list
        ['a', 'A', 'b', 'a']|unique(true)|list
        users|unique(attribute='age')|map(attribute='name')|list
        [1, 1.0, true, '1']|unique|list
        [[1], [1]]|unique|list
        'hello'|unique|join
        'a b/c?d=e&f ä~_-.'|urlencode
        {'a b': 'c/d', 'e': 1}|urlencode
        [('a', 'b c'), ('d', none)]|urlencode
        [1, 2]|urlencode
        5|urlencode
        none|urlencode
        true|urlencode
        'see http://example.com/a?b=c. and (www.foo.org) <x@y.com>, mailto:a@b.co http://1.2.3.4:80/x'|urlize
        'https://example.com/aaaaaaaaaaaaaaaaaaaaaa'|urlize(10)
        'https://example.com/aaaaaaaaaaaaaaaaaaaaaa'|urlize(10, true, target='_blank')
        'example.com foo.bar.net http://localhost x@y ftp://a.b tel:123 a.b@c.de @a.b'|urlize(rel='me')
        'tel:123 ftp://a.b'|urlize(extra_schemes=['tel:', 'ftp://'])
        'x'|urlize(extra_schemes=['1'])
        'http://a.com/(b) (http://a.com/(b)) http://[::1]/'|urlize
        '<http://a.com> http://ä.com &'|urlize
        'hello, world'|wordcount
        'a_b c-d ä9 ½ -- ²'|wordcount
        ''|wordcount
        words|wordwrap(10)
        words|wordwrap(20)
        words|wordwrap(5)
        words|wordwrap(5, false)
        words|wordwrap(7, break_on_hyphens=false)
        words|wordwrap(12, wrapstring='|')
        'aaaaaaaaaaaa-bbbbbbbbbb--cccc d'|wordwrap(6)
        'aaaaaaaaaaaa-bbbbbbbbbb--cccc d'|wordwrap(6, true, '\n', false)
        'foo--bar a--b "x"--y e-mail x-y-z a1-b2 --opt -x'|wordwrap(4)
        'foo--bar a--b "x"--y e-mail x-y-z a1-b2 --opt -x'|wordwrap(8)
        'a\n\nb\n'|wordwrap(5)
        'a   b      c'|wordwrap(3)
        '   indented text here'|wordwrap(10)
        'x'|wordwrap(0)
        ''|wordwrap
        {'a': 1, 'b': none, 'c': '<', 'd': undef, 'e': 'x'|safe}|xmlattr
        {'a': 1}|xmlattr(false)
        {'a': 1}|xmlattr(autospace=false)
        {'a b': 1}|xmlattr
        {'a>': 1}|xmlattr
        {1: 1}|xmlattr
        {}|xmlattr
        [1]|xmlattr
        'x'|nofilter
        'x'|upper(1)
        'x'|upper|lower|title|trim|length
        {'x': 1}|items|list
        5|items|list
        numbers|length
        (numbers|map('abs'))|length
        5|length
        numbers|count
    """)
    return out


def tojson():
    return lines(r"""
        d|tojson
        users|tojson
        mixed|tojson
        s|tojson
        odd|tojson
        odd|tojson(ensure_ascii=true)
        s|tojson(ensure_ascii=true)
        s|tojson(true)
        floats|tojson
        ['inf'|float, '-inf'|float, 'nan'|float]|tojson
        {1: 2, 1.5: 3, true: 4, none: 5}|tojson
        {'inf'|float: 1}|tojson
        {(1, 2): 3}|tojson
        users|tojson(indent=2)
        users|tojson(indent=0)
        mixed|tojson(indent='--')
        mixed|tojson(indent=-1)
        {'a': [], 'b': {}, 'c': [[]]}|tojson(indent=4)
        d|tojson(indent=none)
        d|tojson(indent=true)
        d|tojson(indent='')
        d|tojson(separators=(',', ':'))
        d|tojson(separators=[';', '='])
        d|tojson(indent=1, separators=(', ', ' : '))
        d|tojson(separators=none)
        d|tojson(separators=(',',))
        d|tojson(separators='ab')
        d|tojson(separators=(1, 2))
        d|tojson(sort_keys=true)
        {'b': {'z': 1, 'y': 2}, 'a': 1}|tojson(sort_keys=true)
        {1: 1, 'a': 2}|tojson(sort_keys=true)
        {2: 1, 1: 2}|tojson(sort_keys=true)
        d|tojson(false, 2, (',', ': '), true)
        d|tojson(x=1)
        undef|tojson
        [undef]|tojson
        range(3)|tojson
        (1, (2,))|tojson
        d.items()|tojson
        d.keys()|list|tojson
        (numbers|map('abs'))|tojson
        namespace(a=1)|tojson
        "</script>&'"|tojson
        ('<'|safe)|tojson
        big|tojson
        ''|tojson
        none|tojson
        [true, false]|tojson
        '\u2028\ud7ff\ufffd'|tojson
        d|tojson(indent=1.5)
    """)


def tests():
    values = ["s", "empty", "n", "0", "f", "yes", "no", "nothing", "numbers", "[]", "d", "undef", "(1,)", "range(2)", "d.keys()",
              "'x'|safe", "range", "namespace(a=1)", "cycler(1)", "joiner()", "dict", "'abc'.upper", "numbers|map('abs')",
              "'ABC'", "'abc'", "'upper'", "'odd'"]
    every = ["odd", "even", "divisibleby(3)", "defined", "undefined", "filter", "test", "none", "boolean", "false", "true",
             "integer", "float", "lower", "upper", "string", "mapping", "number", "sequence", "iterable", "callable",
             "sameas none", "escaped", "in [1, 'abc', none]"]
    out = prints(*[f"{value} is {name}" for value, name in itertools.product(values, every)])
    comparisons = ["==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", "ge", ">=", "<", "lt", "lessthan", "<=", "le"]
    out += prints(*[f"[3]|select('{name}', 2)|list" for name in comparisons])
    out += prints(*[f"['b', 'a']|reject('{name}', 'a')|list" for name in comparisons])
    out += prints(*[f"3 is {name} 3" for name in comparisons if name.isalpha()])
    out += lines(r"""
        7 is not odd
        7 is odd and 8 is even
        7 is odd or no
        7 is divisibleby 7
        7 is divisibleby(num=7)
        7 is divisibleby 0
        7 is divisibleby
        7.5 is odd
        'abc' is odd
        '%d' is odd
        n is eq 42
        n is eq(42)
        n is eq n
        n is gt 41 and n is lt 43
        n is sameas n
        true is sameas true
        1 is sameas true
        none is sameas none
        numbers is sameas numbers
        [] is sameas []
        s is sameas 'other'
        n is in [42]
        n is not in [42]
        'a' is in 'abc'
        1 is in 'abc'
        'b' is in d
        n is defined is defined
        n is notest
        n is string or n is number
        undef is defined and undef.x
        undef.x is defined
        d.x is defined
        d.x.y is defined
        loop is defined
        not n is odd
        n is even if true else 1
        'x' if n is even else 'y'
        n is defined and s is defined
        -1 is lt 0
        n is none or nothing is none
        [1] is eq [1]
        {'a': 1} is eq {'a': 1}
        raise_exception is callable
        namespace is callable
        [] is filter
        1 is filter
        n is 'x'
        undef is eq undef2
    """)
    return out


def globals_():
    return lines(r"""
        range(5)
        range(5)|list
        range(2, 5)|list
        range(10, 0, -3)|list
        range(0)|list
        range(5, 2)|list
        range(1, 10, 3)
        range(0, 5, 2)[1:]
        range(5)[1]
        range(5)[-1]
        range(5)[9]
        range(5)[::-1]
        range(5)[::2]|list
        range(5)|length
        3 in range(5)
        7 in range(0, 10, 2)
        2.0 in range(5)
        'a' in range(5)
        range(3) == range(0, 3)
        range(0) == range(5, 5)
        range(0, 4, 2) == range(0, 3, 2)
        range(5).start
        range(5).stop
        range(5).step
        range(5).index(3)
        range(5).index(9)
        range(5).count(3)
        range(100001)|length
        range(100000)|length
        range(1.5)
        range('a')
        range()
        range(1, 2, 0)
        range(1, 2, 3, 4)
        range(true)|list
        range(n=3)
        dict()
        dict(a=1, b=2)
        dict({'a': 1}, a=3, c=2)
        dict([('a', 1), ['b', 2]])
        dict(['ab', 'cd'])
        dict([1])
        dict([(1, 2, 3)])
        dict(1)
        dict({}, {})
        dict(**d)
        dict(users[0].items())
        dict.fromkeys(['a', 'b'], 1)
        dict
        lipsum(n=0)
        lipsum(0, false)
        lipsum(n=-1)
        lipsum(x=1)
        cycler(1, 2).next()
        cycler('a').current
        cycler()
        cycler
        joiner()
        joiner()()
        joiner
        joiner('-').sep
        joiner().used
        namespace
        namespace()
        namespace(a=1, b='x')
        namespace({'a': 1}, b=2)
        namespace([('a', 1)]).a
        namespace(a=1)['a']
        namespace(a=1).b
        namespace(a=1).b is defined
        namespace(1)
        namespace(a=1) == namespace(a=1)
        raise_exception('no')
        raise_exception()
        raise_exception(5)
        strftime_now('%Y-%m-%d')
        strftime_now('%d %b %Y %H:%M:%S.%f %p %I %j %y')
        strftime_now('%A %a %B %b %w %u %U %W %V %G %g %C')
        strftime_now('%c|%x|%X|%D|%F|%T|%R|%r')
        strftime_now('%-d %-m %-H %_d %e %k %l %P %h %n%t%%')
        strftime_now('%z|%Z|%s' if false else '%z|%Z')
        strftime_now('%Q %!')
        strftime_now('')
        strftime_now('ä %d')
        strftime_now('%^a %^B %-I %-M %-S %-j')
        strftime_now(5)
        strftime_now()
        strftime_now(format='%Y')
        self
        self.x
        caller
        loop
        super
        undef()
        s()
        n()
        range.x
        self.__class__
    """) + [
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.pos }}{{ c.items }}",
        "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.reset() }}{{ c.next() }}",
        "{% set j = joiner(', ') %}{% for x in numbers %}{{ j() }}{{ x }}{% endfor %}",
        "{% set j = joiner() %}{% for x in numbers %}{{ j() }}{{ x }}{% endfor %}",
        "{% set j = joiner(sep=1) %}{{ j() }}{{ j() }}",
        "{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{% set ns.b = [ns.a] %}{{ ns.a }}{{ ns.b }}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.me = [ns, 1] %}{{ ns }}",
        "{% set ns = namespace(a=1) %}{% set ns._x = 2 %}{{ ns._x }}|{{ ns['_x'] }}",
        "{% set d.x = 1 %}",
        "{% set undef.x = 1 %}",
        "{% set ns = namespace() %}{% set ns.a, ns.b = 1, 2 %}{{ ns.a }}{{ ns.b }}",
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.role %}{% endfor %}{{ ns.t }}",
        "{% set ns = namespace() %}{% set ns.a %}block {{ n }}{% endset %}{{ ns.a }}",
    ]


def str_methods():
    subjects = ["s", "empty", "'  mixed Case\\t '", "'123'", "'a,b,,c'", "'ÄÖß'", "'Title Case'", "'x'", "'½²'", "'-42'"]
    plain = ["capitalize", "casefold", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower",
             "isnumeric", "isprintable", "isspace", "istitle", "isupper", "lower", "lstrip", "rstrip", "split", "splitlines",
             "strip", "swapcase", "title", "upper", "rsplit", "expandtabs"]
    calls = ["center(9)", "center(8, '*')", "count('a')", "count('')", "endswith('c')", "find('a')", "index('a')", "join(['1', '2'])",
             "ljust(5, '.')", "partition(',')", "replace(',', ';')", "rfind('')", "rindex(',')", "rjust(5)", "rpartition(',')",
             "split(',')", "rsplit(',', 1)", "startswith(('a', ' '))", "removeprefix('a')", "removesuffix('c')", "zfill(6)",
             "find('', 2)", "split(none, 1)", "rsplit(none, 1)"]
    out = prints(*[f"{subject}.{name}()" for subject, name in itertools.product(subjects, plain)])
    out += prints(*[f"{subject}.{call}" for subject, call in itertools.product(subjects, calls)])
    out += lines(r"""
        'abc'.capitalize(1)
        'abc'.nomethod()
        'abc'.nomethod
        'abc'.upper
        'abc'['upper']()
        'abc'.__class__
        'abc'.__class__.__name__
        'abc'.__x__
        'abc'._private
        'ab'.center(5) ~ '|'
        'abc'.center(6) ~ '|'
        'abc'.center(7, 'xy')
        'abc'.center()
        'abc'.center('5')
        'abc'.center(5, fillchar='x')
        'abc'.center(-1)
        'abcabc'.count('bc')
        'abcabc'.count('c', 3)
        'abcabc'.count('c', 0, 3)
        'aaaa'.count('aa')
        'abc'.count('', 1)
        'abc'.count('', 4)
        'abc'.count('', 3)
        'abc'.count(1)
        'abc'.count()
        'äbc'.find('c')
        'äbcäbc'.find('ä', 1)
        'abc'.find('c', -1)
        'abc'.find('a', -2)
        'abc'.find('c', 0, -1)
        'abc'.find('', 3)
        'abc'.find('', 4)
        'abc'.find('a', none, none)
        'abc'.find('b', 2, 1)
        'abc'.find('')
        'abc'.rfind('', 1, 2)
        'abcabc'.rfind('c')
        'abcabc'.rfind('c', 0, 4)
        'abc'.rfind('z')
        'abc'.index('c')
        'abc'.index('z')
        'abcabc'.index('c', 3)
        'abc'.rindex('z')
        'abcabc'.rindex('a')
        'abc'.endswith(('x', 'c'))
        'abc'.endswith('c', 0, 2)
        'abc'.endswith('')
        'abc'.endswith('', 4)
        'abc'.endswith(['c'])
        'abc'.endswith(1)
        'abc'.startswith('b', 1)
        'abc'.startswith('')
        'abc'.startswith(())
        'abc'.startswith(('a', 1))
        'abc'.startswith((1, 'a'))
        'äbc'.startswith('b', 1)
        'a\tb'.expandtabs()
        'a\tb\tc'.expandtabs(4)
        'a\tb\n\tc'.expandtabs(tabsize=2)
        'a\tb'.expandtabs(0)
        'a\tb'.expandtabs(-1)
        'ä\tb'.expandtabs(4)
        '{} {}'.format(1, 'a')
        '{0} {1} {0}'.format('x', 'y')
        '{a} {b}'.format(a=1, b=none)
        '{a}'.format_map({'a': 5})
        '{a}'.format_map({})
        '{a}'.format_map(a=1)
        '{}'.format_map({'a': 1})
        '-'.join(['a', 'b'])
        '-'.join('abc')
        '-'.join(names)
        '-'.join([1])
        '-'.join(d)
        ''.join([])
        ', '.join(['x'])
        '-'.join(names|map('upper'))
        '-'.join(5)
        'ab'.ljust(4) ~ '|'
        'ab'.rjust(4) ~ '|'
        'ab'.rjust(4, 'ä')
        '  ab '.lstrip() ~ '|'
        'xxabxx'.lstrip('x')
        'xyab'.lstrip('yx')
        'xxabxx'.rstrip('x')
        'xyzabcxyz'.strip('zyx')
        ' a '.strip(none)
        ' a '.strip(1)
        '\x1c\x85\u2003a'.strip()
        ''.maketrans('ab', 'xy')
        ''.maketrans({'a': 'b', 99: none})
        ''.maketrans('ab', 'xy', 'z')
        ''.maketrans('ab', 'x')
        'abc'.translate({97: 'X', 98: none, 99: 100})
        'abcz'.translate(''.maketrans('ab', 'xy', 'z'))
        'abc'.translate({})
        'abc'.translate({97: 1.5})
        'a-b-c'.partition('-')
        'abc'.partition('-')
        'abc'.partition('')
        'a-b-c'.rpartition('-')
        'abc'.rpartition('-')
        'foobar'.removeprefix('foo')
        'foobar'.removesuffix('bar')
        'foo'.removesuffix('')
        'foo'.removeprefix(1)
        'aXbX'.replace('X', 'y')
        'aXbX'.replace('X', 'y', 1)
        'aXbX'.replace('X', 'y', count=1)
        'abc'.replace('', '.')
        'abc'.replace('a', 1)
        'a b  c'.split()
        'a b  c'.split(' ')
        'a,b,c'.split(',', 1)
        'a,b,c'.split(',', maxsplit=1)
        'a,b,c'.split(sep=',')
        ' a b '.split(none, 1)
        ' a b c '.split(none, 0)
        'a b c'.split(' ', 0)
        ''.split()
        ''.split(',')
        'abc'.split('')
        'abc'.split(1)
        'a<think>b</think>c'.split('</think>')[-1].lstrip('\n')
        'a b c'.rsplit(' ', 1)
        ' a b c '.rsplit(none, 1)
        'a b c'.rsplit()
        'aXXbXXc'.rsplit('XX', 1)
        'a\nb\r\nc\rd\x0be\x0cf\x1cg\x85h\u2028i'.splitlines()
        'a\nb\n'.splitlines(true)
        'a\n\nb'.splitlines(keepends=true)
        ''.splitlines()
        '\n'.splitlines()
        'hELLO wORLD'.swapcase()
        'ß'.swapcase()
        "they're bill's friends".title()
        'ǆabc'.title()
        'ǆabc'.capitalize()
        'ΑΣ ΑΣΑ'.lower()
        'ﬁ'.upper()
        'İ'.lower()|length
        'ŉ'.upper()
        'Straße'.casefold()
        '5'.zfill(3)
        '-5'.zfill(4)
        '+5'.zfill(4)
        'abc'.zfill(2)
        ''.zfill(2)
        'x'.zfill()
        'abc'.encode()
        'abc'.encode('utf-8')
        'A'.istitle()
        'Aa Bb'.istitle()
        'Aa bb'.istitle()
        '1A'.istitle()
        'AA'.istitle()
        'a1'.isidentifier()
        '1a'.isidentifier()
        'ä_'.isidentifier()
        'for'.isidentifier()
        ''.isidentifier()
        '٣'.isdecimal()
        '²'.isdigit()
        '½'.isnumeric()
        '一'.isnumeric()
        ''.isprintable()
        '\u200b'.isprintable()
        ''.isascii()
        ' \t\u00a0'.isspace()
        'ab12'.isalnum()
        'ª'.islower()
        'Ⅷ'.isupper()
        ('<b>'|safe).upper()
        ('a<'|safe).replace('a', '<')
        ('<'|safe).join(['<', '>'])
        ('<%s>'|safe) % '&'
        ('<{}>'|safe).format('&')
        ('<{}>'|safe).format('&'|safe)
        ('<{:>5}>'|safe).format('&')
        ('a,b'|safe).split(',')
        ('a b'|safe).partition(' ')
        ('<b>x</b>&lt;'|safe).striptags()
        ('&lt;'|safe).unescape()
        ('x'|safe).escape('<')
        ('a'|safe) + '<'
        '<' + ('a'|safe)
        ('a'|safe) * 3
        ('abc'|safe)[1:]
        ('abc'|safe)[0]|tojson
        ('a'|safe) == 'a'
        ('a'|safe) ~ '<'
        ('x'|safe).center(5)
        ('%(a)s'|safe) % {'a': '<'}
        ('%d %r'|safe) % (1, '<')
    """)
    return out


def containers():
    return lines(r"""
        numbers.index(2)
        numbers.index(99)
        numbers.index(1, 1)
        numbers.index(3, 1)
        numbers.index(10, -2)
        numbers.index(10, 0, -1)
        numbers.count(1)
        [1, 1.0, true].count(1)
        numbers.copy()
        numbers.append(1)
        numbers.append
        numbers.append is defined
        numbers.clear()
        numbers.pop()
        numbers.reverse()
        numbers.insert(0, 1)
        numbers.sort()
        numbers.extend([1])
        numbers.remove(1)
        numbers['append'](1)
        numbers.nope()
        (1, 2, 1).count(1)
        (1, 2).index(2)
        (1, 2).index(3)
        (1, 2).copy()
        (1, 2).append
        d.get('a')
        d.get('z')
        d.get('z', 7)
        d.get('z', default=7)
        d.get([])
        d.get()
        d.items()
        d.items
        d['items']
        d.keys()
        d.values()
        d.copy()
        d.keys
        d.b
        d.z
        d['x y']
        d['z']
        d[1]
        d[[]]
        d.pop('a')
        d.pop
        d.popitem()
        d.setdefault('a', 1)
        d.update({})
        d.clear()
        d.fromkeys(['x'], 1)
        d.fromkeys('ab')
        {}.fromkeys([1, 2, 1])
        {}.fromkeys([[]])
        d.keys()|length
        d.keys()[0]
        d.keys()|list
        d.items()|list|first
        'a' in d.keys()
        1 in d.values()
        ('a', 2) in d.items()
        'a' in d
        'z' not in d
        [] in d
        d.keys() == d.keys()
        {'a': 1}.items() == {'a': 1}.items()
        {'a': 1}.values() == {'a': 1}.values()
        d.keys().isdisjoint(['z'])
        d.keys().mapping
        {'a': 1, 'b': 2} == {'b': 2, 'a': 1}
        {'a': 1, 'a': 2}
        {1: 'a', 1.0: 'b', true: 'c'}
        {'a': 1}['a']
        {none: 1}[none]
        {(1, 2): 3}[(1, 2)]
        {(1, 2): 3}[1, 2]
        {[]: 1}
        {{}: 1}
        {undef: 1}
        n.bit_length()
        n.real
        n.imag
        n.numerator
        n.denominator
        n.conjugate()
        n.as_integer_ratio()
        n.bit_count()
        n.to_bytes(2, 'big')
        n.from_bytes
        n.x
        n.bit_length(1)
        true.real
        true.bit_length()
        f.is_integer()
        2.0.is_integer()
        half.as_integer_ratio()
        half.hex()
        (0.1).hex()
        (0.0).hex()
        -2.5.real
        f.real
        f.imag
        f.conjugate()
        f.fromhex('0x1p3')
        nothing.x
        nothing['x']
        nothing.__class__
        mixed[6].k
        mixed[5][1]
        nested[1][1][0]
        nested[5]
        nested[5][0]
        nested.0
        nested.1.1.0
        numbers[-1]
        numbers[true]
        numbers[1.0]
        numbers['1']
        numbers['count'](1)
        s[0]
        s[-1]
        s[99]
        s['upper']()
        s.0
        (1, 2, 3)[1]
        users[0]['name']
        users[0].city.name
        users[3].city.name
        users[3].city is defined
        users[0]['city']['name']
        [1, 2] + [3]
        [1] * 3
        3 * [1]
        [1] * -1
        (1,) + (2,)
        (1,) * 2
        [1] + (2,)
        [] + none
        [1, 2] == [1, 2.0]
        [1, 2] == (1, 2)
        [1, 2] < [1, 3]
        [1] < [1, 0]
        (1, 'a') < (1, 'b')
        [1, 'a'] < [1, 2]
        [[1]] == [[1]]
        1 in [1.0]
        none in [none]
        [] in [[]]
        'a' in ['b', 'a']
        numbers[1:3]
        numbers[:-1]
        numbers[::-1]
        numbers[::2]
        numbers[3:1]
        numbers[-2:]
        numbers[10:]
        numbers[:100]
        numbers[-100:2]
        numbers[3:0:-1]
        numbers[-1:-4:-2]
        numbers[::0]
        numbers[none:2]
        numbers['a':]
        numbers[1.5:]
        numbers[true:]
        numbers[:2, 1]
        numbers[1, 2]
        numbers[]
        s[1:4]
        s[::-1]
        s[-3:]
        s[7:5]
        s[::7]
        'ää'[1:]
        (1, 2, 3)[1:]
        d[1:2]
        n[1:]
        undef[1:]
        nothing[:1]
        (numbers|map('abs'))[0]
        (numbers|map('abs'))[0:1]
        messages[1:]|length
        messages[-1].role
        messages[0]['content']
        messages[5].role
    """)


def operators():
    values = ["n", "neg", "0", "f", "half", "yes", "nothing", "'ab'", "[1]", "(1,)", "d", "undef", "range(2)", "'x'|safe"]
    ops = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "and", "or"]
    out = prints(*[f"({left}) {op} ({right})" for left, op, right in itertools.product(values, ops, values)
                   if not (op == "**" and left in ("n", "neg") and right == "n")])
    out += lines(r"""
        1 + 2 * 3 ** 2
        2 ** 3 ** 2
        -2 ** 2
        (-2) ** 2
        -n
        +n
        -yes
        --n
        - -n
        not n
        not not n
        -'a'
        -undef
        +undef
        -nothing
        7 // 2
        -7 // 2
        7 // -2
        -7 % 3
        7 % -3
        -7.5 % 2
        7.5 // 2
        -7.5 // 2
        7 / 2
        6 / 2
        1 / 3
        1e308 * 10
        -1e308 * 10
        2 ** 0.5
        2 ** -1
        0 ** -1
        0.0 ** -1
        (-8) ** (1 / 3)
        10 ** 20
        2 ** 100
        2 ** 126
        10.0 ** 400
        1 / 0
        1 // 0
        1 % 0
        1.0 / 0
        1.5 % 0
        big + 1
        big * 2
        big / 3
        big // 7
        big % 1000
        -big
        big == 12345678901234567890.0
        9007199254740993 == 9007199254740992.0
        9007199254740993 > 9007199254740992.0
        0.1 + 0.2
        1.0
        1e16
        1e15
        123456789012345678.0
        1e-4
        1e-5
        1.5e300
        5e-324
        0.1
        100.0
        1e22
        1_000
        1_0.5_0
        0x1f
        0b101
        0o17
        0xFF_FF
        1E3
        1.
        .5
        00
        07
        1__0
        1e
        true
        True
        false
        False
        none
        None
        null
        TRUE
        'a' 'b'
        'a' "b" 'c'
        "it's"
        'say "hi"'
        'a\nb'
        'tab\there'
        '\x41\u00e4\U0001F600\101\0'
        '\d\q\''
        '\ä'
        "\N{DIGIT ONE}"
        '\x4'
        '\ud800'
        1 < 2 < 3
        1 < 2 > 3
        1 < 3 > 2
        1 == 1.0 == true
        1 < 2 in [2]
        not 1 == 2
        not (1 == 2)
        1 if true
        1 if false
        (1 if false) is defined
        1 if false else 2
        1 if false else 2 if false else 3
        'a' if undef else 'b'
        1 and 2
        0 and 2
        0 or ''
        '' or 'x'
        1 and 0 or 3
        undef or 'x'
        undef and 'x'
        undef and undef.x
        nothing or undef or 5
        1 ~ 2
        'a' ~ none ~ true ~ 1.0 ~ [1]
        1 + 2 ~ 3 + 4
        1 ~ 2 * 3
        'a' + 1 ~ 'b'
        ('a', 'b')
        ('a',)
        ()
        (1)
        1, 2
        1,
        [1, 2,]
        [,]
        {'a': 1,}
        {,}
        {}
        {'a'}
        [x for x in y]
        a.b.c
        undef.x
        undef['x']
        undef.x.y
        undef + 1
        1 + undef
        undef ~ 'x'
        undef == undef2
        undef != 1
        undef == none
        undef == ''
        undef < 1
        1 < undef
        undef in [1]
        1 in undef
        undef in 'abc'
        undef|length
        [undef]
        {'a': undef}
        undef is none
        not undef
        undef() is defined
        '' ~ undef ~ ''
        undef * 2
        2 * undef
        undef / 2
        undef ** 2
        undef % 2
        '%s' % undef
        '%d' % undef
        undef|default('x')|upper
        n.x.y
        n.x
        n.x|default('y')
        n['x']
        1 in 5
        'a' in none
        1 in '123'
        'a' not in 'abc'
        [1, 2] in [[1, 2]]
        'ab' < 'b'
        'B' < 'a'
        'a' < 1
        none < none
        none == none
        d < d
        d == d
        true + true
        true == 1
        true < 2
        'a' * 2.0
        'a' * true
        'a' * 'b'
        'a' - 'b'
        'abc' / 2
        [1] - [1]
        1 +
        1 2
        * 2
        (1
        1)
        [1)
        {'a': 1)
        a b
        'unterminated
        a.1b
        a.'b'
        a..b
        a.
        1 is
        |upper
        a|
        a|1
        a is 1
        f(a=1, a=2)
        f(a=1, 2)
        f(*[1], 2)
        f(**{}, *[])
        f(*[1], *[2])
        f(,)
        dict(a=1,)
        dict(*[[('a', 1)]])
        dict(**{'a': 1}, b=2)
        dict(a=1, **{'a': 2})
        dict(**{1: 2})
        dict(**[1])
        range(*[1, 3])|list
        range(*(1, 6), **{})|list
        range(*5)
        n if n is odd else 'even'
        (n, f)[0]
        [1, [2, [3]]][1][1][0]
        {'f': 'upper'}['f']
        {'a': {'b': [1, 2]}}.a.b[1]
        odd
        [odd]
        [s, words]
        floats
        mixed
        users
        ['\x1b\x7f\x80\xad\u0378\u200b\u2028\U0001f600\U000e0001']
        ["'", '"', '\'"', '\\']
        @
        a $ b
        a ? b
        a & b
        a ! b
        a := b
        lambda
        a if
        not
        loop.index
        1 is not none
        1 is not (none)
        'x' is in ['x'] and 1
        n == 42 and s
        n >= 42 <= 43
    """)
    return out


def formats():
    specs = ["", "5", "<5", ">5", "^5", "*^7", "05", "=5", "+", " ", "-", "#x", "x", "X", "o", "b", "#b", "d", "n", "c", ",", "_", "_x",
             ".2", ".0", ".2f", "8.3f", "08.2f", "+.1f", "e", ".2e", "E", "g", ".3g", "G", "%", ".1%", "s", ".2s", "10s", "<08", ">08",
             "_b", ",.2f", "012,", "#.0f", "#g", "z.1f", "+d", "x<+8", "r", "5.", "..", "1,_", "{}", "=", "a=6", "\u00e4^5"]
    values = ["n", "neg", "f", "half", "1e20", "0.0", "1234567.891", "yes", "'abc'", "nothing", "[1]", "-0.0", "f * 1e308 * 10", "100.0"]
    out = prints(*[f"'{{:{spec}}}'.format({value})" for spec, value in itertools.product(specs, values)])
    percents = ["%s", "%d", "%5d", "%-5d|", "%05d", "%+d", "% d", "%x", "%X", "%#x", "%o", "%#o", "%e", "%.2e", "%f", "%.0f", "%8.2f",
                "%g", "%.3g", "%G", "%c", "%r", "%a", "%.2s", "%10s", "%-10s|", "%i", "%u", "%5.1f%%", "%#.0f", "%#g", "%.3d", "%+.2e",
                "%ld", "%b", "%", "%5", "%q", "%.s", "%05s", "%0-5d|"]
    out += prints(*[f"'{percent}' % {value}" for percent, value in itertools.product(
        percents, ["n", "neg", "f", "'äb'", "yes", "nothing", "[1]"])])
    out += lines(r"""
        '%s %s' % ('a', 'b')
        '%s %s' % ('a',)
        '%s' % ('a', 'b')
        '%s' % (('a', 'b'),)
        '%s' % ()
        '%s' % [1, 2]
        'abc' % []
        'abc' % {}
        'abc' % ()
        'abc' % 1
        'abc' % 'x'
        'abc' % none
        '%(a)s %(b)05.1f' % {'a': 1, 'b': 2}
        '%(a)s' % {}
        '%(a)s' % [1]
        '%(a)s' % 'x'
        '%(a' % {'a': 1}
        '%(a(b))s' % {'a(b)': 1}
        '%(a)s %s' % {'a': 1}
        '%*d' % (5, 42)
        '%-*d|' % (5, 42)
        '%*d|' % (-5, 42)
        '%.*f' % (2, 3.14159)
        '%*d' % ('a', 42)
        '%%' % ()
        '%%' % 1
        '%5%' % ()
        '%c' % 'ab'
        '%c' % 228
        '%c' % -1
        '%d' % 3.99
        '%d' % '3'
        '%x' % 3.5
        '%d' % big
        '%s' % big
        '%f' % 'x'
        '%f' % big
        '%.50f' % 0.1
        '%.3s|' % 'äöüß'
        '%r' % s
        '%a' % s
        '%s' % s
        '%s' % true
        '%d' % true
        '%5s|%-5s|' % ('a', 'b')
        '%s %% %s' % (1, 2)
        'ä%sö' % 'ü'
        '[%s] %s' % (messages[0]['role'], messages[0]['content'])
        '%d items' % numbers|length
        '%d items' % (numbers|length)
        '{}{}'.format(1)
        '{0}{}'.format(1, 2)
        '{}{0}'.format(1, 2)
        '{1}'.format(1)
        '{a}'.format(b=1)
        '{0.real}'.format(5)
        '{0[1]}'.format([1, 2])
        '{0[a]}'.format({'a': 7})
        '{0[a][0]}'.format({'a': [7]})
        '{u[name]} {u.name}'.format(u=users[0])
        '{0.__class__}'.format(5)
        '{0.nope}'.format(5)
        '{0.nope.nope}'.format(5)
        '{0[9]}'.format([1])
        '{0.upper}'.format('a')
        '{!r} {!s} {!a}'.format('ä', 'ä', 'ä')
        '{!x}'.format(1)
        '{!}'.format(1)
        '{!r:>5}'.format('a')
        '{!rx}'.format('a')
        '{:{}}'.format('a', 5)
        '{:{w}.{p}f}'.format(3.14159, w=8, p=2)
        '{:{:{}}}'.format(1, 2, 3)
        '{{}} {{{}}}'.format(1)
        '{'.format(1)
        '}'.format(1)
        '{0'.format(1)
        '{0:'.format(1)
        '{0[}'.format(1)
        '{0[a}'.format({'a': 1})
        '{0[]}'.format({'': 1})
        '{0.}'.format(1)
        '{0[a]b}'.format({'a': 1})
        '{ }'.format(1)
        '{-1}'.format(1)
        '{a b}'.format(**{'a b': 1})
        '{}'.format()
        ''.format(1)
        'x'.format(1, 2)
        '{:}'.format(none)
        '{:5}'.format(undef)
        '{}'.format(undef)
        '{}'.format([1, 'a'])
        '{:d}'.format(3.0)
        '{:d}'.format('3')
        '{:s}'.format(3)
        '{:,}'.format(1234567)
        '{:_}'.format(1234567)
        '{:,}'.format(1234567.5)
        '{:,}'.format('abc')
        '{:08,}'.format(1234)
        '{:_x}'.format(big)
        '{:c}'.format(65)
        '{:+c}'.format(65)
        '{:c}'.format(-1)
        '{:.3}'.format(1234.5)
        '{:.3}'.format(12.0)
        '{:.1}'.format(0.05)
        '{:.3}'.format(100.0)
        '{:.4}'.format(100.0)
        '{:10}'.format(1.5)
        '{:.10}'.format(0.1)
        '{:.17g}'.format(0.1)
        '{:.0e}'.format(15.5)
        '{:.1f}'.format(0.25)
        '{:.1f}'.format(0.35)
        '{:.0f}'.format(0.5)
        '{:.0f}'.format(1.5)
        '{:.0f}'.format(2.5)
        '{:.2%}'.format(0.12345)
        '{:e}'.format(big)
        '{:.2f}'.format(big)
        '{:999999999999}'.format(1)
        '{:<<5}'.format(1)
        '{:}}5}'.format(1)
    """)
    return out


# A template a line; ⏎ stands for a new line in it.
STATEMENT_LINES = r"""
{% if n %}yes{% endif %}
{% if undef %}a{% elif n == 42 %}b{% else %}c{% endif %}
{% if 0 %}a{% elif '' %}b{% else %}c{% endif %}
{% if n, %}tuple{% endif %}
{% if %}{% endif %}
{% if n %}⏎{% endif %}
{% if n %}a{% else %}b{% else %}c{% endif %}
{% if n: %}colon{% endif %}
{% for x in numbers %}{{ x }},{% endfor %}
{% for x in numbers: %}{{ x }},{% endfor %}
{% for x in [] %}a{% else %}empty{% endfor %}
{% for x in numbers %}a{% else %}empty{% endfor %}
{% for x in undef %}a{% else %}empty{% endfor %}
{% for x in 5 %}a{% endfor %}
{% for x in nothing %}a{% endfor %}
{% for c in 'äb' %}[{{ c }}]{% endfor %}
{% for k in d %}{{ k }};{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|items %}{{ k }}={{ v }};{% endfor %}
{% for k, v in d|dictsort %}{{ k }}={{ v }};{% endfor %}
{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}
{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}
{% for a, b in [(1,)] %}{{ a }}{% endfor %}
{% for a, b in [1] %}{{ a }}{% endfor %}
{% for a, b in ['xy'] %}{{ a }}{{ b }}{% endfor %}
{% for a, in [(1,)] %}{{ a }}{% endfor %}
{% for x in numbers if x > 1 %}{{ x }}:{{ loop.index }}/{{ loop.length }} {% endfor %}
{% for x in numbers if x > 100 %}{{ x }}{% else %}none{% endfor %}
{% for x in numbers if loop.index > 1 %}{{ x }}{% endfor %}
{% for x in 1, 2, 3 %}{{ x }}{% endfor %}
{% for x in (1, 2) + (3,) %}{{ x }}{% endfor %}
{% for x in numbers|sort|reverse %}{{ x }},{% endfor %}
{% for x in range(3) %}{{ x }}{% endfor %}{{ x }}
{% for x in numbers %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}|{% endfor %}
{% for x in numbers %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}
{% for x in numbers %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{% endfor %}
{% for x in numbers %}{{ loop.cycle('a', 'b') }}{% endfor %}
{% for x in numbers %}{{ loop.cycle() }}{% endfor %}
{% for x in [1, 1, 2, 2, 1] %}{{ loop.changed(x) }},{% endfor %}
{% for x in [1, 1, 2] %}{{ loop.changed(x, loop.first) }},{% endfor %}
{% for x in [1, 2] %}{{ loop.changed() }},{% endfor %}
{% for x in [1, 2] %}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}
{% for x in [1, 2] %}{{ loop }}{% endfor %}
{% for x in [1, 2] %}{{ loop|length }}{{ loop['index'] }}{{ loop.nope }}{% endfor %}
{% for x in [1, 2] %}{% for y in [3, 4] %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}
{% for x in [1, 2] %}{% set outer = loop %}{% for y in 'ab' %}{{ outer.index }}{{ loop.index }} {% endfor %}{% endfor %}
{% for x in numbers|map('abs') %}{{ loop.length }}{{ loop.last }}{{ x }},{% endfor %}
{% for x in numbers|select('odd') %}{{ x }}{{ loop.nextitem }},{% endfor %}
{% for x in d.items() %}{{ loop.length }}{{ x }}{% endfor %}
{% for x in [1, 2] %}{% for y in loop %}{{ y }}{% endfor %}{% endfor %}
{% for x in [1] %}{% set loop = 2 %}{% endfor %}
{% for loop in [1] %}{{ loop }}{% endfor %}
{% set loop = 2 %}{{ loop }}
{% for x in tree recursive %}{{ x.v }}{% if x.c %}[{{ loop(x.c) }}]{% endif %}{% endfor %}
{% for x in tree recursive %}{{ loop.depth }}{{ x.v }}{{ loop(x.c) }};{% endfor %}
{% for x in tree recursive %}{{ x.v }}{{ loop(x.c) }}{% else %}-{% endfor %}
{% for x in [1] %}{{ loop([2]) }}{% endfor %}
{% for x in [1] recursive %}{{ loop() }}{% endfor %}
{% for x in [1] recursive %}{{ loop(5) }}{% endfor %}
{% for x in numbers %}{% if x == 2 %}{% break %}{% endif %}{{ x }},{% endfor %}
{% for x in numbers %}{% if x == 1 %}{% continue %}{% endif %}{{ x }},{% endfor %}
{% for x in numbers %}{% break %}{% else %}else{% endfor %}
{% for x in numbers %}{% continue %}{% else %}else{% endfor %}
{% for x in numbers %}{{ x }}{% break %}{% else %}else{% endfor %}
{% for x in [1, 2] %}{% for y in [1, 2] %}{{ x }}{{ y }}{% break %}{% endfor %}{% endfor %}
{% for x in [1, 2] %}{% for y in [] %}{% else %}{{ x }}{% break %}{% endfor %}{% endfor %}
{% for x in [1, 2] %}{% filter upper %}a{% break %}{% endfilter %}{% endfor %}end
{% for x in [1, 2] %}{% set y %}a{% continue %}{% endset %}{% endfor %}end
{% for x in [1, 2] %}{% with z = x %}{{ z }}{% break %}{% endwith %}{% endfor %}
{% for x in [1] %}{% macro m() %}{% break %}{% endmacro %}{% endfor %}
{% for x in [1] %}{% call range() %}{% continue %}{% endcall %}{% endfor %}
{% for x in [1] recursive %}{{ x }}{% break %}{% endfor %}
{% break %}
{% continue %}
{% if n %}{% break %}{% endif %}
{% for x in [] %}{% else %}{% break %}{% endfor %}
{% set x = 1 %}{{ x }}
{% set x = 1, 2 %}{{ x }}
{% set x, y = 1, 2 %}{{ y }}{{ x }}
{% set (x, y) = (1, 2) %}{{ y }}{{ x }}
{% set x, y = [1, 2, 3] %}
{% set x, (y, z) = 1, (2, 3) %}{{ x }}{{ y }}{{ z }}
{% set [x, y] = 1, 2 %}
{% set 1 = 2 %}
{% set true = 2 %}
{% set none = 2 %}
{% set x.y = 1 %}
{% set x['y'] = 1 %}
{% set x %}a{{ n }}b{% endset %}{{ x }}{{ x|length }}
{% set x | upper %}a{{ n }}b{% endset %}{{ x }}
{% set x | replace('a', 'b') | upper %}a{% endset %}{{ x }}
{% set x %}{% set y = 2 %}{{ y }}{% endset %}{{ x }}{{ y }}
{% set x⏎%}a{% endset %}
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}
{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = x + 10 %}{{ x }};{% endfor %}{{ x }}
{% for i in [1, 2] %}{% if loop.first %}{% set x = 1 %}{% endif %}{{ x }};{% endfor %}
{% for n in [1, 2] %}{{ n }}{% endfor %}{{ n }}
{% if false %}{% set n = 1 %}{% endif %}{{ n }}
{% if false %}{% set q = 1 %}{% endif %}{{ q }}|{{ q is defined }}
{% for i in [1] %}{% if false %}{% set n = 1 %}{% endif %}{{ n }}{% endfor %}
{% for i in [1] %}{{ n }}{% set n = 1 %}{{ n }}{% endfor %}{{ n }}
{% set x = n %}{% set n = 1 %}{{ x }}{{ n }}
{% with %}{{ n }}{% endwith %}
{% with x = 1 %}{{ x }}{% endwith %}{{ x }}
{% with x = 1, y = 2 %}{{ x }}{{ y }}{% endwith %}
{% with x = 1, y = x %}{{ y }}{% endwith %}
{% with n = n + 1, m = n %}{{ n }}{{ m }}{% endwith %}{{ n }}
{% with x = 1 %}{% set x = 2 %}{% set z = 3 %}{{ x }}{{ z }}{% endwith %}{{ x }}{{ z }}
{% with (a, b) = (1, 2) %}{{ a }}{{ b }}{% endwith %}
{% with a, b = 1 %}{% endwith %}
{% with x = %}{% endwith %}
{% filter upper %}a{{ s }}{% endfilter %}
{% filter replace('a', 'b') %}aaa{% endfilter %}
{% filter upper|replace('A', '-') %}abc{% endfilter %}
{% filter trim %}{% set q = 1 %} {{ q }} {% endfilter %}{{ q }}
{% filter nofilter %}a{% endfilter %}
{% filter indent(2) %}a⏎b{% endfilter %}
{% filter %}a{% endfilter %}
{% macro m() %}hi{% endmacro %}{{ m() }}{{ m() }}
{% macro m(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(b=3, a=4) }}{{ m() }}
{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 2) }}
{% macro m(a=b, b=1) %}{{ a }}{{ b }}{% endmacro %}{{ m() }}
{% macro m(a=n) %}{{ a }}{% endmacro %}{{ m() }}
{% macro m(a, b) %}{{ b is defined }}{{ b }}{% endmacro %}{{ m(1) }}
{% macro m(a, b) %}{{ b.c }}{% endmacro %}{{ m(1) }}
{% macro m(a=1, b) %}{% endmacro %}
{% macro m(a, a) %}{% endmacro %}
{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}{{ m() }}
{% macro m(a) %}{{ a }}{{ varargs }}{% endmacro %}{{ m(1, 2, 3) }}
{% macro m(a) %}{{ a }}{{ kwargs }}{% endmacro %}{{ m(1, z=2, y=3) }}
{% macro m(varargs=1) %}{{ varargs }}{% endmacro %}{{ m() }}{{ m(2) }}
{% macro m() %}{% endmacro %}{{ m(1) }}
{% macro m() %}{% endmacro %}{{ m(x=1) }}
{% macro m(a) %}{% endmacro %}{{ m(1, a=1) }}
{% macro m() %}{% set x = 1 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}
{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}
{% set x = 1 %}{% macro m() %}{{ x }}{% endmacro %}{% set x = 2 %}{{ m() }}
{% macro m() %}{{ q }}{% endmacro %}{% for q in [1, 2] %}{{ m() }}{% endfor %}
{% for q in [1, 2] %}{% macro m() %}{{ q }}{% endmacro %}{{ m() }}{% endfor %}
{% for q in [1, 2] %}{% macro m() %}{{ q }}{% endmacro %}{% endfor %}{{ m() }}
{% macro f(i) %}{{ i }}{% if i > 0 %},{{ f(i - 1) }}{% endif %}{% endmacro %}{{ f(3) }}
{% macro a() %}a{{ b() }}{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}
{{ m() }}{% macro m() %}late{% endmacro %}
{% macro m(a, b=1) %}{{ kwargs }}{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m.catch_kwargs }}{{ m.catch_varargs }}{{ m.caller }}{{ m }}
{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}body {{ n }}{% endcall %}
{% macro m() %}<{{ caller(1, 2) }}>{% endmacro %}{% call(a, b) m() %}{{ a }}-{{ b }}{% endcall %}
{% macro m() %}<{{ caller(1) }}>{% endmacro %}{% call(a, b=5) m() %}{{ a }}-{{ b }}{% endcall %}
{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}
{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}{% call m() %}{% endcall %}
{% macro m() %}x{% endmacro %}{% call m() %}{% endcall %}
{% macro m(caller) %}{{ caller() }}{% endmacro %}{% call m() %}x{% endcall %}
{% macro m(caller=none) %}{{ caller }}{% endmacro %}{{ m() }}
{% macro m(x) %}{{ x }}{{ caller() }}{% endmacro %}{% call m('a') %}{% set z = 1 %}{{ z }}{% endcall %}{{ z }}
{% call n %}{% endcall %}
{% call range(3) %}{% endcall %}
{% call dict(a=1) %}x{% endcall %}
{% macro outer() %}{% macro inner() %}i{{ caller() }}{% endmacro %}{% call inner() %}c{% endcall %}{% endmacro %}{{ outer() }}
{% macro outer() %}{% macro inner() %}i{{ caller() }}{% endmacro %}{% call inner() %}c{{ caller() }}{% endcall %}{% endmacro %}{% call outer() %}o{% endcall %}
{% macro m() %}{% endmacro %}{{ m }}{{ m is callable }}{{ [m] }}
{% macro m() %} a {% endmacro %}{{ m()|trim }}|{{ m()|length }}
{% macro m(x) %}{{ x|upper }}{% endmacro %}{{ ['a']|map('m')|list }}
{% if n %}{% macro m() %}in if{% endmacro %}{% endif %}{{ m() }}
{% if no %}{% macro m() %}in if{% endmacro %}{% endif %}{{ m() }}
{% with %}{% macro m() %}in with{% endmacro %}{{ m() }}{% endwith %}{{ m() }}
{% block b %}text {{ n }}{% endblock %}
{% block b %}text{% endblock b %}{{ self.b() }}
{% block b %}text{% endblock %}{{ self['b']() }}{{ self.c }}
{% block b %}text{% endblock c %}
{% block b %}1{% endblock %}{% block b %}2{% endblock %}
{% block a %}[{% block b %}inner{% endblock %}]{% endblock %}
{% set x = 1 %}{% block b %}{{ x }}{% endblock %}
{% for i in [1, 2] %}{% block b %}{{ i }}{% endblock %}{% endfor %}
{% for i in [1, 2] %}{% block b scoped %}{{ i }}{{ loop.index }}{% endblock %}{% endfor %}
{% block b %}{% set x = 1 %}{{ x }}{% endblock %}{{ x }}
{% block b required %}{% endblock %}
{% block b required %}x{% endblock %}
{% block b %}{{ super() }}{% endblock %}
{% block b-c %}{% endblock %}
{% macro m() %}M{% endmacro %}{% block b %}{{ m() }}{% endblock %}
{% print n %}
{% print n, s %}
{% print %}
{% include 'x' %}
{% include 'x' ignore missing %}
{% include [] ignore missing %}ok
{% include ['x'] ignore missing %}
{% include undef ignore missing %}
{% if false %}{% include 'x' %}{% endif %}ok
{% import 'x' as y %}
{% from 'x' import y %}
{% from 'x' import _y %}
{% if false %}{% from 'x' import y as z, w with context %}{% endif %}ok
{% extends 'x' %}
{% if false %}{% extends 'x' %}{% endif %}ok
{% for x in [] %}{% extends 'x' %}{% endfor %}
{% do n %}
{% trans %}x{% endtrans %}
{% debug %}
{% endif %}
{% endfor %}
{% else %}
{% unknown %}
{% %}
{% 1 %}
{% raw %}{{ n }}{% if %}{% endraw %}
{% raw %}  {% endraw %}|
a {%- raw -%}  x  {%- endraw -%} b
{% raw %}⏎x⏎{% endraw %}⏎y
{% raw %}unclosed
{% raw %}{% endraw
{% autoescape true %}{{ '<' }}{{ '<'|safe }}{{ '<' ~ '>' }}{% endautoescape %}{{ '<' }}
{% autoescape false %}{{ '<' }}{% endautoescape %}
{% autoescape n %}{{ '<' }}{% endautoescape %}
{% autoescape true %}{% set x %}<b>{{ '<' }}{% endset %}{{ x }}{% macro m() %}<i>{% endmacro %}{{ m() }}{{ ['<', '<'|safe]|join('&') }}{% endautoescape %}
{% autoescape true %}{% filter upper %}<{{ '<' }}{% endfilter %}{{ '<a>'|replace('a', '<') }}{{ {'a': 1}|xmlattr }}{% endautoescape %}
{% autoescape true %}{{ [1, '<'] }}{{ none }}{{ undef }}{{ 1.5 }}{{ '<'|escape }}{{ '<'|e|e }}{% endautoescape %}
{% generation %}a{{ n }}{% endgeneration %}
{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}
{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}
{% for m in messages %}{% set t = 'outer' %}{% generation %}{% set t = 'inner' %}{{ m['content'] }}{% endgeneration %}{{ t }}{% endfor %}
{% for x in [1] %}{% generation %}{{ loop.index }}{{ x }}{% endgeneration %}{% endfor %}
{% for x in [1] %}{% generation %}{% break %}{% endgeneration %}{% endfor %}
{% generation %}{{ caller }}{% endgeneration %}
{% generation %}{{ kwargs }}{{ varargs }}{% endgeneration %}
{% generation x %}{% endgeneration %}
{% generation %}⏎{% endgeneration %}
{{ '{% generation %}' }}{% raw %}{% generation %}{% endraw %}
{% macro m() %}{% generation %}g{% endgeneration %}{% endmacro %}{{ m() }}
{%- generation -%} x {%- endgeneration -%}
{% set generation = 1 %}{{ generation }}
{{ 'x'|nofilter if false else 'y' }}
{{ 'y' if true else 'x'|nofilter }}
{% if false %}{{ 'x'|nofilter }}{% endif %}ok
{% if true %}{{ 'x'|nofilter }}{% endif %}ok
{% if false %}{% for x in [] %}{{ 'x'|nofilter }}{% endfor %}{% endif %}ok
{% if false %}{{ 'x' is notest }}{% endif %}ok
{% for x in [] %}{{ 'x'|nofilter }}{% endfor %}ok
{% for x in numbers %}{% if x is odd %}{% set y = x %}{% else %}{% set y = 0 %}{% endif %}{{ y }}{% endfor %}
{% set messages = messages[1:] %}{{ messages|length }}
{% set a = [1] %}{% set b = a %}{{ a is sameas b }}
{% set x = namespace(i=0) %}{% for i in range(3) if i != x.i %}{% set x.i = i + 1 %}{{ i }}{% endfor %}
{% set m = messages|selectattr('role', 'equalto', 'user')|list %}{{ m|length }}{{ m[0].content|trim }}
{% set it = numbers|map('abs') %}{{ it|list }}{{ it|list }}
{% set it = numbers|map('abs') %}{{ it|first }}{{ it|first }}{{ it|list }}
{% set it = d|items %}{% for k, v in it %}{{ k }}{% endfor %}{% for k, v in it %}{{ k }}{% endfor %}
{% set it = numbers|select('odd') %}{{ 3 in it }}{{ 3 in it }}
{% set it = numbers|select %}{% if it %}true{% endif %}
{% set x %}{% endset %}{% if x %}a{% else %}b{% endif %}
{% for x in [3, 1] %}{% for y in [x] %}{{ loop.previtem }}{% endfor %}{% endfor %}
{% for x in numbers %}{% if loop.last %}{{ x }}{% endif %}{% endfor %}
{% for m in messages %}{{ '<|' ~ m.role ~ '|>' }}{{ m['content']|trim }}{% if not loop.last %}{{ '\n' }}{% endif %}{% endfor %}
{%if n%}x{%endif%}
{{n}}{{-n-}}{{+n}}
{{ n }
{{ n
{% if n
{# comment #}a
{# unclosed
a {#
a {{
a {%
{#- a -#} b
{# {{ n }} {% if %} #}x
{{ '{{' }}{{ '}}' }}{{ '{%' }}{{ '#}' }}
{{ {'a': {'b': 1}} }}
{{ {'a': {'b': 1}}}}
{{ [{}] }}
{{ {} }}{{ {}}}
{{ "%}" }}{% set x = "%}" %}{{ x }}
} %} #} {
"""


def whitespace():
    tags = ["{% if 1 %}", "{%- if 1 %}", "{%+ if 1 %}", "{% if 1 -%}", "{% if 1 +%}", "{%- if 1 -%}"]
    ends = ["{% endif %}", "{%- endif %}", "{%+ endif %}", "{% endif -%}", "{% endif +%}"]
    out = []
    for tag, end in itertools.product(tags, ends):
        out.append(f"a\n  {tag}\n  b\n  {end}\n  c\n")
        out.append(f"a {tag} b {end} c")
    for variable in ["{{ n }}", "{{- n }}", "{{ n -}}", "{{- n -}}", "{{+ n }}"]:
        out.append(f"a\n  {variable}\n  b")
        out.append(f"  {variable}\n\n")
    for comment in ["{# c #}", "{#- c #}", "{# c -#}", "{#+ c #}", "{# c +#}", "{#- c -#}"]:
        out.append(f"a\n  {comment}\n  b")
        out.append(f"  {comment}  x\n")
        out.append(f"x {comment}\ny")
    out += [
        "a\r\nb\rc\n", "a\n\n", "\n", "", " ", "\n\n\n", "a\r\n{% if 1 %}\r\nb\r\n{% endif %}\r\nc\r\n", "{{ 'a\r\nb' }}", "a{{ '\n' }}",
        "\t{% if 1 %}x{% endif %}\n", "  x {% if 1 %}y{% endif %}", "\u00a0{% if 1 %}x{% endif %}", "a\n\u3000{% if 1 %}x{% endif %}",
        "{% if 1 %}  \n x{% endif %}", "{% if 1 %}\n\n x{% endif %}", "{% if 1 %}\n{% if 1 %}\n x\n{% endif %}\n{% endif %}\n",
        "{% for i in [1, 2] %}\n  {{ i }}\n{% endfor %}\n", "{% for i in [1, 2] -%}\n  {{ i }}\n{%- endfor %}\n",
        "  {% for i in [1, 2] %}\n  {{ i }}\n  {% endfor %}\n", "{% for i in [1, 2] %}{{ i }}\n{% endfor %}",
        "{%- for i in [1, 2] -%}\n\n  {{- i -}}\n\n{%- endfor -%}\n end", "a  {%- set x = 1 -%}  b", "a\n{%- set x = 1 %}\nb",
        "{% set x = 1 %}\n{% set y = 2 %}\n{{ x }}\n", "{% raw %}\n a {% endraw %}\n b", "  {% raw %} a {% endraw %} b", "a\n  {% raw %}\n b\n  {% endraw %}\nc",
        "a\n {%- raw %} b {% endraw -%}\n c", "a {% raw -%} b {%- endraw %} c", "a\n  {%+ raw %} b {%+ endraw %} c", "{% raw -%}\n\n x{% endraw +%}\n y",
        "{% macro m() %}\n  x\n{% endmacro %}\n{{ m() }}|", "{% macro m() -%}\n  x\n{%- endmacro -%}\n{{ m() }}|",
        "{% set x %}\n  a\n{% endset %}\n{{ x }}|", "x\n{% generation %}\n a\n{% endgeneration %}\ny",
        "{% if 1 %}\r\nx\r\n{% endif %}", "{#- a -#}\n\n{{ n }}", "{{ n }}\n{# x #}\n{{ n }}", "a{#\n#}b", "{{ n -}}\n\n\n{{ n }}", "{{\nn\n}}", "{%\nif\n1\n%}x{%\nendif\n%}",
        "{% if 1 %}a{% endif %}\n", "{% if 1 %}a{% endif %}\n\n", "a\x0b{% if 1 %}x{% endif %}", "a\n\x0c{% if 1 %}x{% endif %}", "\x1c{%- if 1 %}x{% endif %}",
        "{{ 'x' }}  {% if 1 %}y{% endif %}", "{{ 'x' }}\n  {% if 1 %}y{% endif %}", "{% if 1 %}{% endif %}  {% if 1 %}y{% endif %}", "{% if 1 %}{% endif %}\n  {% if 1 %}y{% endif %}",
        "{# x #}\n  {% if 1 %}y{% endif %}", "{% raw %}{% endraw %}\n  {% if 1 %}y{% endif %}", "{{ n }}{% if 1 %}\n{% endif %}\n{{ n }}",
    ]
    return out


def statements():
    return [line.replace("⏎", "\n") for line in STATEMENT_LINES.strip("\n").split("\n")]


def sections():
    return {
        "filters": filters(),
        "tojson": tojson(),
        "tests": tests(),
        "globals": globals_(),
        "str": str_methods(),
        "containers": containers(),
        "operators": operators(),
        "formats": formats(),
        "statements": statements(),
        "whitespace": whitespace(),
    }
