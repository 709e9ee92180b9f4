//! Writes the first inputs of every target into the folder that is named: requests of the project's own tests, the
//! skeleton of a request for each preset, and small examples.
//!
//! `cargo run --example seeds -- corpus`

use std::path::Path;

use hookbridge::signature::preset;
use hookbridge_fuzz::Vectors;

const JWKS: &[u8] = include_bytes!("../data/jwks.json");

fn main() -> std::io::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "corpus".to_owned());
    let write = |target: &str, name: &str, bytes: &[u8]| {
        let folder = Path::new(&folder).join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(name), bytes)
    };
    let vectors = Vectors::read();
    for (name, bytes) in vectors.inputs().iter().filter(|(_, bytes)| bytes.len() < 8192) {
        write("verify", name, bytes)?;
    }
    for name in preset::names() {
        write("verify", &format!("{name}-skeleton"), skeleton(name).as_bytes())?;
    }
    for (index, text) in vectors.documents().values().enumerate() {
        write("document", &format!("certificate-{index}"), text.as_bytes())?;
        let inner: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        if let Ok(der) = data_encoding::BASE64.decode(inner.as_bytes()) {
            write("document", &format!("der-{index}"), &der)?;
        }
    }
    write("document", "key-set", JWKS)?;
    write(
        "document",
        "ed25519",
        br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
    )?;
    for (index, (pointer, body)) in [
        ("/a/b/1/c~1d", r#"{"a":{"b":[1,{"c/d":"deep"}]},"n":7,"t":true}"#),
        ("/a/0", r#"{"a":[-1.5e3,null,"\u00e9\ud83d\ude00"]}"#),
        ("", r#"[{"a": 1},2,[],"x"]"#),
        ("a=1&payload=%7B%22type%22%3A%22t%22%7D,t=17", r#"{"update_id":1,"message":{"text":"x"}}"#),
        ("", "a=1&form=x+y%21&payload=%7B%22type%22%3A%22t%22%7D"),
    ]
    .iter()
    .enumerate()
    {
        write("place", &format!("example-{index}"), format!("{pointer}\n{body}").as_bytes())?;
    }
    let parts = "--XX\r\ncontent-disposition: form-data; name=\"json\"\r\n\r\n{}\r\n--XX\r\nContent-Disposition: form-data; \
                 name=\"b\"; filename=\"c\"\r\nContent-Type: text/plain\r\n\r\nx\r\n--XX--\r\n";
    for (index, body) in ["a=1&b=x+y%21&a=1", "=&&=;a", "%ff=%C3%A9&%zz=%4", parts].iter().enumerate() {
        write("form", &format!("example-{index}"), body.as_bytes())?;
    }
    let claims = r#"{"iss":"sender","aud":["us","them"],"iat":1760000000,"exp":1760000060,"nbf":1759999990.5}"#;
    let tokens = [
        ("eyJhbGciOiJIUzI1NiJ9.e30.AAAA", r#"{"alg":"HS256","kid":"1"}"#, claims),
        (
            "eyJhbGciOiJub25lIn0.e30.",
            r#"{"alg":"HS256","crit":["x"]}"#,
            r#"{"iss":"sender","aud":"us","iat":1760000000}"#,
        ),
        ("eyJhbGciOiJFUzI1NiIsImtpZCI6IjEifQ.e30.AAAA", r#"{"alg":"RS256"}"#, "[]"),
        ("eyJhbGciOiJSUzI1NiJ9.e30.AAAA", r#"{"alg":"HS256","alg":"none"}"#, "{}"),
    ];
    for (index, (token, header, claims)) in tokens.iter().enumerate() {
        write("jwt", &format!("example-{index}"), format!("{token}\n{header}\n{claims}").as_bytes())?;
    }
    let times = ["1760000000", "1760000000000", "2025-10-09T08:53:20.5Z", "2025-10-09T01:53:20-07:00", "+1", "1e9"];
    for (index, time) in times.iter().enumerate() {
        write("timestamp", &format!("example-{index}"), time.as_bytes())?;
    }
    for (index, message) in [
        "outbox.planner\nHookbridge-Endpoint: crm\nNats-Msg-Id: 1\n\nhello",
        "outbox.planner\n\n{\"endpoint\":\"crm\",\"id\":\"p-1\",\"type\":\"t\",\"payload\":{\"b\": 1.50}}",
        "outbox.planner\n\n{\"callback_url\":\"https://x/?y\",\"content_type\":\"text/plain\",\"payload\":\"h\\u0069\"}",
        "outbox.planner.topic\nHookbridge-Callback-Url: https://x\nContent-Type: a/b\n\n",
        "outbox.planner\nnats-msg-id: 1\nHookbridge-Task-Id: t\n\n{\"task_id\":\"t1\",\"status\":\"working\"}",
    ]
    .iter()
    .enumerate()
    {
        write("outbox", &format!("example-{index}"), message.as_bytes())?;
    }
    write("trace", "example", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\nvendor=1")
}

/// A request with everything that a preset mentions.
fn skeleton(name: &str) -> String {
    let file = preset::text(name).unwrap_or_default();
    let word = |text: &str, end: &[char]| text.split(end).next().unwrap_or_default().to_owned();
    let after = |mark: &str| file.split(mark).skip(1).map(str::to_owned).collect::<Vec<_>>();
    let ends = ['"', '}', ' ', '|', '?', ':'];
    let mut headers: Vec<String> = after("header:").iter().map(|rest| word(rest, &ends)).collect();
    headers.extend(after("header = \"").iter().map(|rest| word(rest, &['"'])));
    headers.sort();
    headers.dedup();
    let queries = after("query:").iter().map(|rest| word(rest, &ends) + "=1").collect::<Vec<_>>().join("&");
    let member = |rest: &String| format!("{:?}:\"x\"", word(rest, &['"', '}', ' ', '|', '?', '/']));
    let body = after("json:/").iter().map(member).collect::<Vec<_>>().join(",");
    let headers: String = headers.iter().map(|header| format!("{header}: t=1760000000,v1=00\n")).collect();
    format!("{name} 1760000000 POST {queries}\n{headers}\n{{{body}}}")
}
