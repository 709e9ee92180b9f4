//! What a transformation gives, what it refuses, and that nothing makes it run away.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// More than any program may take, also in a build without optimisation on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn given(program: &str, document: &str) -> Result<String, TransformError> {
    let transform = Transform::parse(program).unwrap_or_else(|error| panic!("{program}: {error}"));
    transform.apply(document.as_bytes(), MAX_INPUT).map(|text| String::from_utf8(text).unwrap())
}

fn wrong(program: &str) -> String {
    match Transform::parse(program) {
        Ok(_) => panic!("taken: {program}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_people_write_gives_what_they_mean() {
    let order = r#"{"order":{"id":7,"total":1.50,"by":"Ada","tags":["a","B"],"note":null,"lines":[
        {"sku":"x","count":2},{"sku":"y","count":0}]},"kind":"order.paid"}"#;
    for (program, expected) in [
        (
            ".",
            r#"{"order":{"id":7,"total":1.50,"by":"Ada","tags":["a","B"],"note":null,"lines":[{"sku":"x","count":2},{"sku":"y","count":0}]},"kind":"order.paid"}"#,
        ),
        (r#"{id: .order.id, kind: "order"}"#, r#"{"id":7,"kind":"order"}"#),
        (".order | {id, total}", r#"{"id":7,"total":1.50}"#),
        (r#"{"order id": .order["id"], (.order.by): true}"#, r#"{"order id":7,"Ada":true}"#),
        (r#"{text: "\(.order.by) paid \(.order.total)"}"#, r#"{"text":"Ada paid 1.50"}"#),
        (".order.note // .order.by // \"nobody\"", "\"Ada\""),
        (".missing.deeper", "null"),
        ("[.order.lines[] | select(.count > 0) | .sku]", r#"["x"]"#),
        (".order.lines | map({(.sku): .count})", r#"[{"x":2},{"y":0}]"#),
        ("if .kind == \"order.paid\" and .order.id >= 7 then \"yes\" elif .x then 1 else \"no\" end", "\"yes\""),
        (r#"{"paid": "P", "open": "O"}[.state // "paid"]"#, "\"P\""),
        (".order.tags | join(\", \") | ascii_upcase", "\"A, B\""),
        ("[.order.tags[0], .order.tags[-1], (.order.tags | first, last)]", r#"["a","B","a","B"]"#),
        (".order.by[0:2]", "\"Ad\""),
        ("[.order | to_entries | map(.key) | length, (keys | first)] | {n: .[0], k: .[1]}", ""),
        (
            "[(.order | type), (.kind | type), (.order.id | type), (.order.note | type), (.order.tags | type)]",
            r#"["object","string","number","null","array"]"#,
        ),
        ("[.order.id | tostring, tojson] | {a: .[0], b: .[1]}", r#"{"a":"7","b":"7"}"#),
        ("(\"12\", \"1.50\") | [tonumber]", ""),
        ("[(\"12\" | tonumber), (\"1.50\" | tonumber)]", "[12,1.50]"),
        (
            "[(.kind | startswith(\"order\")), (.kind | endswith(\"x\")), (.kind | ltrimstr(\"order.\"))]",
            r#"[true,false,"paid"]"#,
        ),
        ("[.order | has(\"id\"), has(\"x\")] | {a: .[0], b: (.[1] | not)}", r#"{"a":true,"b":true}"#),
        (".order.tags[]?", ""),
        ("[.order.lines[].sku?, .kind.x?]", r#"["x","y"]"#),
        (
            "[true, false, null, -1, 1.50, 123456789012345678901234567890]",
            "[true,false,null,-1,1.50,123456789012345678901234567890]",
        ),
        ("[.order.tags[] | values] # and a remark", r#"["a","B"]"#),
    ] {
        if expected.is_empty() {
            // Only that it is understood; the next tests say what comes of more than one result.
            Transform::parse(program).unwrap();
        } else {
            assert_eq!(given(program, order).as_deref(), Ok(expected), "{program}");
        }
    }
}

#[test]
fn numbers_and_texts_stay_as_they_were_written() {
    let document = r#"{"n":1.50,"e":1e3,"big":123456789012345678901234567890.10,"int":99999999999999999999,"t":"é\u0000\u001f\ud83d\ude00"}"#;
    let same = given("{n, e, big, int}", document).unwrap();
    assert_eq!(same, r#"{"n":1.50,"e":1e3,"big":123456789012345678901234567890.10,"int":99999999999999999999}"#);
    let text: String = serde_json::from_str(&given(".t", document).unwrap()).unwrap();
    assert_eq!(text, "é\0\u{1f}\u{1f600}");
}

#[test]
fn mistakes_say_where_they_are() {
    for (program, expected) in [
        ("", "line 1, column 1: expected term"),
        ("{id: .a", "column 8: expected closing brace"),
        ("{id: .a,\n kind ^ 2}", "line 2, column 7: expected"),
        (".a | | .b", "column 6: expected"),
        (".a | upper", "column 6: there is no function `upper`"),
        ("map(.a; .b)", "`map` takes 1 arguments, not 2"),
        (".a as $x | $x", "`as` is not available"),
        ("$ENV.HOME", "`$ENV` is not available"),
        ("env", "no function `env`"),
        ("input", "no function `input`"),
        ("def f: f; f", "`def` is not available"),
        ("reduce .[] as $x (0; .)", "column 1: `reduce` is not available"),
        ("foreach .[] as $x (0; .)", "`foreach` is not available"),
        ("..", "`..` is not available"),
        ("recurse", "no function `recurse`"),
        ("range(9)", "no function `range`"),
        ("[limit(1; repeat(1))]", "no function `limit`"),
        ("first(.[])", "`first` takes 0 arguments"),
        ("until(false; .)", "no function `until`"),
        ("try .a", "`try`"),
        ("(.a | .b)?", "`try`"),
        ("label $x | break $x", "is not available"),
        (".a + 1", "arithmetic is not available"),
        ("-(.a)", "arithmetic is not available"),
        (".a = 1", "assignment is not available"),
        (".a |= 1", "assignment is not available"),
        (".a += 1", "assignment is not available"),
        ("@base64 \"\\(.a)\"", "`@base64` is not available"),
        ("@json", "`@json`"),
        ("import \"a\" as a; .", "expected"),
        ("include \"a\"; .", "expected"),
        ("halt", "no function `halt`"),
        ("paid", "no function `paid`"),
        (".[.a:]", "a slice by anything but constants"),
        ("has(.a)", "anything but a constant"),
        ("{$x}", "`$x` is not available"),
        ("{\"a\\(.b)\"}", "a member without a value"),
    ] {
        let error = wrong(program);
        assert!(error.contains(expected), "{program}: {error}");
    }
}

#[test]
fn a_program_that_is_too_long_or_nests_too_deep_is_refused_before_it_is_parsed() {
    assert!(wrong(&format!("\"{}\"", "x".repeat(2048))).contains("longer than"));
    assert!(wrong(&"(".repeat(33)).contains("nests deeper"));
    assert!(wrong(&vec!["."; 65].join("|")).contains("nests deeper than 64 terms"));
    let members: Vec<String> = (0..150).map(|index| format!("k{index}: .a")).collect();
    assert!(wrong(&format!("{{{}}}", members.join(","))).contains("more than 256 terms"));
}

#[test]
fn whatever_an_operator_writes_is_parsed_on_a_small_stack() {
    let programs = [
        "(".repeat(32),
        "-".repeat(2000),
        "if ".repeat(600),
        "try ".repeat(500),
        "def a: ".repeat(250),
        "reduce ".repeat(250),
        ".a".repeat(1000),
        ".|".repeat(1000),
        ".,".repeat(1000),
        format!(".{}", "|.".repeat(120)),
        format!(".{}", ",.".repeat(120)),
        format!(".{}", "|.".repeat(63)),
        format!(".{}", ",.".repeat(63)),
        format!(".{}", "[]".repeat(62)),
        format!("{}.{}", "[".repeat(32), "]".repeat(32)),
        format!("{}{}", "[".repeat(32), "]".repeat(32)),
        "1 as $x|".repeat(60),
        "if .a then .b elif ".repeat(100),
        "\"\\(".repeat(300),
        ". as [".repeat(30),
    ];
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    let parsing = thread.spawn(move || {
        for program in programs {
            if let Ok(transform) = Transform::parse(&program) {
                drop(transform.apply(b"{}", 100));
            }
        }
    });
    parsing.unwrap().join().unwrap();
}

#[test]
fn what_does_not_come_to_exactly_one_result_is_an_error() {
    assert_eq!(given("empty", "1"), Err(TransformError::NoOutput));
    assert_eq!(given("select(.a)", "{}"), Err(TransformError::NoOutput));
    assert_eq!(given(".[]", "[1,2]"), Err(TransformError::ManyOutputs));
    assert_eq!(
        given("1, .a", "1"),
        Err(TransformError::Misfit("it looks for a key or a place in something that has none, such as a number"))
    );
}

#[test]
fn an_error_never_repeats_the_document() {
    for program in [".a.b", ".a[]", ".a | keys", ".a | tonumber", ".a | join(\"\")", "{}[[.a]]", "{(.a | length): 1}"] {
        let error = given(program, r#"{"a":"s3cret"}"#).unwrap_err().to_string();
        assert!(!error.contains("s3cret"), "{program}: {error}");
    }
}

#[test]
fn a_document_that_cannot_be_taken_is_refused_with_a_reason() {
    let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for (document, expected) in [
        (String::new(), TransformError::NotJson),
        ("{".to_owned(), TransformError::NotJson),
        ("{} {}".to_owned(), TransformError::NotJson),
        ("# remark\n1".to_owned(), TransformError::NotJson),
        ("NaN".to_owned(), TransformError::NotJson),
        ("+1".to_owned(), TransformError::NotJson),
        ("b\"x\"".to_owned(), TransformError::NotJson),
        ("\"\\ud800\"".to_owned(), TransformError::NotJson),
        (nested(129), TransformError::TooDeep),
        (nested(400_000), TransformError::TooDeep),
        ("9".repeat(257), TransformError::LongNumber),
        (format!("[{}]", "9".repeat(1_000_000)), TransformError::LongNumber),
        (format!("\"{}\"", "x".repeat(MAX_INPUT)), TransformError::InputTooLarge(MAX_INPUT + 2)),
    ] {
        let begun: String = document.chars().take(20).collect();
        assert_eq!(given(".", &document), Err(expected), "{begun}");
    }
    assert!(Transform::parse(".").unwrap().apply(b"\"\xff\"", 100).is_err());
    for document in [nested(128), "9".repeat(256), format!("\"{}\"", "[9".repeat(1000)), r#""\\\"[[""#.to_owned()] {
        assert_eq!(given(".", &document), Ok(document));
    }
}

#[test]
fn what_comes_out_is_json_and_no_larger_than_allowed() {
    assert_eq!(given("{(1): 2}", "0"), Err(TransformError::OutputNotJson));
    let transform = Transform::parse("[., .]").unwrap();
    assert_eq!(transform.apply(b"12345", 13), Ok(b"[12345,12345]".to_vec()));
    assert_eq!(transform.apply(b"12345", 12), Err(TransformError::OutputTooLarge(12)));
}

/// Programs that would multiply without end, each over a document made for it.
#[test]
fn nothing_runs_away() {
    let many = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
    let lists = format!("{{\"x\":{},\"y\":{},\"s\":\"{}\"}}", many("0", 2_000), many("1", 2_000), "z".repeat(40_000));
    let double = |step: &str, times: usize| vec![step; times].join("|");
    for (program, document) in [
        ("[{a: .x[], b: .y[]}] | length", lists.as_str()),
        ("[.x[] == .y[]] | length", &lists),
        ("[\"\\(.x[])\\(.y[])\"] | length", &lists),
        ("[{a: .x[], b: (. == .)}] | length", &lists),
        ("[{a: .x[], b: (tojson | length)}] | length", &lists),
        ("[{a: .x[], b: (.s | length)}] | length", &lists),
        ("[{a: .x[], b: .s[0:1]}] | length", &lists),
        ("[{a: .x[], b: .y[0:1999]}] | length", &lists),
        ("[{a: .x[], b: {c: 1}[.s]}] | length", &lists),
        ("[{a: .x[], b: (.x | keys | length)}] | length", &lists),
        ("[{a: .x[], b: (.x | join(\"\") | length)}] | length", &lists),
        (&format!("[{} | empty]", double("(.,.)", 50)), "1"),
        (&double("[.,.]", 30), "1"),
        (&format!("{} | tojson | length", double("[.,.]", 30)), "1"),
        (&format!("{} | . == .", double("[.,.]", 30)), "1"),
        (&format!("{} | [.[][][][][][][][][][][][][][][][][][][][]] | length", double("[.,.]", 20)), "1"),
        (&double("\"\\(.)\\(.)\"", 30), "\"abcdefgh\""),
        (&double("join(\"xxxxxxxx\") | [.,.]", 20), "[\"a\",\"b\"]"),
        (&format!("{{{}, z: empty}}", ('a'..='y').map(|c| format!("{c}: (1,2)")).collect::<Vec<_>>().join(",")), "1"),
    ] {
        let begun = Instant::now();
        let result = given(program, document);
        assert!(result.is_err(), "{program}: {:?}", result.map(|text| text.len()));
        assert!(begun.elapsed() < LONG, "{program}: {:?}", begun.elapsed());
    }
}

#[test]
fn what_goes_once_over_a_large_document_is_not_too_much_work() {
    let item = r#"{"id":1,"name":"n","tags":["a","b"],"count":2}"#;
    let document = format!("{{\"items\":[{}]}}", vec![item; 10_000].join(","));
    let program = "{kind: \"list\", items: [.items[] | select(.count > 0) | {id, name, text: \"\\(.name)-\\(.id)\", \
                   first: .tags[0], all: (.tags | join(\",\"))}]}";
    assert!(given(program, &document).unwrap().len() > 100_000);
    let numbers = format!("[{}]", vec!["0"; 150_000].join(","));
    assert!(given("map({n: .}) | length", &numbers).is_ok());
    assert!(given("map(select(. == 0)) | length", &numbers).is_ok());
}

proptest! {
    #[test]
    fn whatever_is_written_as_a_program_is_understood_or_refused(program in "[\\[\\](){}.|,:;/?a-z \"\\\\0-9$@<=]{0,60}") {
        if let Ok(transform) = Transform::parse(&program) {
            drop(transform.apply(br#"{"a":[1,{"b":"c"}]}"#, 1000));
        }
    }

    #[test]
    fn whatever_document_comes_is_taken_or_refused_and_the_same_again(document in any::<Vec<u8>>()) {
        let transform = Transform::parse(". | {a: ., b: [.]}").unwrap();
        prop_assert_eq!(transform.apply(&document, 1000), transform.apply(&document, 1000));
    }

    #[test]
    fn a_renamed_text_is_the_same_text(text in any::<String>()) {
        let document = json!({"a": text.clone()}).to_string();
        let renamed: serde_json::Value = serde_json::from_str(&given("{b: .a}", &document).unwrap()).unwrap();
        prop_assert_eq!(&renamed["b"], &json!(text));
    }
}
