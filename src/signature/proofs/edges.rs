//! What is known to go wrong with tokens, passwords, plain hashes and small keys.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use data_encoding::{BASE64, BASE64URL, BASE64URL_NOPAD, HEXLOWER};
use http::{HeaderMap, HeaderValue, Method};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::event::Request;
use crate::secret::Secret;
use crate::signature::key::Key;
use crate::signature::mac::{Hash, MacKey};
use crate::signature::public_key::{PublicKey, Signing};
use crate::signature::{Document, Inquiry, Rejection, Scheme, Ways};

const NOW: u64 = 1_760_000_000;
const SECRET: &str = "correct horse battery staple";
const KEY_SET: &str = "https://keys.example.com/jwks";

fn scheme(table: Value) -> Scheme {
    let scheme: Scheme = serde_json::from_value(table).unwrap();
    scheme.validate(None).unwrap();
    scheme
}

/// The verdict on a request with one header.
fn verify(scheme: Scheme, secret: &str, value: &str, body: &[u8], set: Option<Document>) -> Result<(), Rejection> {
    let ways = Ways::new(vec![scheme]);
    let credential = ways.credential(&Secret::new(secret)).unwrap();
    let headers = HeaderMap::from_iter([("x-signature".parse().unwrap(), HeaderValue::from_str(value).unwrap())]);
    let request = Request::new(&Method::POST, "https://hooks.example.com/in", None, &headers, body);
    let set = set.map(Arc::new);
    let documents = |url: &str| set.clone().filter(|_| url == KEY_SET);
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    ways.verify(&[credential], &Inquiry { request: &request, id: None, now, documents: &documents }).map(|_| ())
}

mod tokens {
    use super::*;

    fn jwt(algorithm: &str) -> Value {
        json!({
            "algorithm": "jwt", "header": "x-signature", "prefix": "Bearer ", "tolerance": "1m",
            "jwt": { "algorithms": [algorithm] },
        })
    }

    fn part(value: &str) -> String {
        BASE64URL_NOPAD.encode(value.as_bytes())
    }

    fn mac(secret: &[u8], signed: &str) -> String {
        let key = MacKey::new(Hash::Sha256, &Secret::new(secret)).unwrap();
        BASE64URL_NOPAD.encode(&key.mac(&[signed]))
    }

    /// A token that is signed as it should be, whatever it says.
    fn token(header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", part(header), part(claims));
        format!("{signed}.{}", mac(SECRET.as_bytes(), &signed))
    }

    fn judged(token: &str) -> Result<(), Rejection> {
        verify(scheme(jwt("HS256")), SECRET, &format!("Bearer {token}"), b"{}", None)
    }

    fn judged_claims(claims: &str) -> Result<(), Rejection> {
        judged(&token(r#"{"alg":"HS256"}"#, claims))
    }

    const ALGORITHM: Result<(), Rejection> =
        Err(Rejection::Token("its header names another algorithm, or an extension"));
    const HEADER: Result<(), Rejection> = Err(Rejection::Token("its header is not what it should be"));
    const PARTS: Result<(), Rejection> = Err(Rejection::Token("it has not three parts"));
    const NOT_BASE64URL: Result<(), Rejection> = Err(Rejection::Token("a part of it is not base64url"));
    const NO_TIME: Result<(), Rejection> = Err(Rejection::Token("a time in its claims is none"));

    #[test]
    fn only_the_configured_algorithm_is_taken_however_well_the_token_is_signed() {
        assert_eq!(judged(&token(r#"{"alg":"HS256","typ":"JWT","kid":"any"}"#, "{}")), Ok(()));
        for algorithm in ["none", "None", "NONE", "nOnE", "", "hs256", "HS384", "HS512", "RS256", "ES256", "HS256 "] {
            let header = json!({ "alg": algorithm }).to_string();
            assert_eq!(judged(&token(&header, "{}")), ALGORITHM, "{algorithm}");
            assert_eq!(judged(&format!("{}.{}.", part(&header), part("{}"))), ALGORITHM, "{algorithm}");
        }
        for header in
            ["{}", r#"{"alg":null}"#, r#"{"alg":["HS256"]}"#, r#"{"alg":"none","alg":"HS256"}"#, "[]", "x", ""]
        {
            assert_eq!(judged(&token(header, "{}")), HEADER, "{header}");
        }
    }

    #[test]
    fn a_public_key_is_never_a_shared_secret() {
        // The key of RFC 7515, appendix A.3, which everybody knows: whoever takes its text for an HMAC key is lost.
        let jwk = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;
        let genuine = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let public = |token: &str| verify(scheme(jwt("ES256")), jwk, &format!("Bearer {token}"), b"{}", None);
        assert!(matches!(public(genuine), Err(Rejection::TooOld { .. })), "the signature of the example is right");
        let signed = format!("{}.{}", part(r#"{"alg":"HS256"}"#), part("{}"));
        assert_eq!(public(&format!("{signed}.{}", mac(jwk.as_bytes(), &signed))), ALGORITHM);
        let signed = format!("{}.{}", part(r#"{"alg":"ES256"}"#), part("{}"));
        assert_eq!(
            public(&format!("{signed}.{}", mac(jwk.as_bytes(), &signed))),
            Err(Rejection::Mismatch { secrets: 1 })
        );

        let two = json!({ "algorithms": ["HS256", "ES256"] });
        let mut table = jwt("ES256");
        table["jwt"] = two;
        assert!(serde_json::from_value::<Scheme>(table).unwrap().validate(None).is_err());
        let mut table = jwt("HS256");
        table["jwks"] = json!(KEY_SET);
        assert!(serde_json::from_value::<Scheme>(table).unwrap().validate(None).is_err());
    }

    #[test]
    fn a_token_names_its_key_or_any_key_of_the_set_will_do() {
        let random = SystemRandom::new();
        let pair = |_| {
            let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref(), &random).unwrap()
        };
        let pairs: Vec<EcdsaKeyPair> = (0..3).map(pair).collect();
        let jwk = |index: usize| {
            let point = &pairs[index].public_key().as_ref()[1..];
            let number = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
            json!({ "kty": "EC", "crv": "P-256", "kid": index.to_string(), "x": number(&point[..32]), "y": number(&point[32..]) })
        };
        // The third pair's key is not in the set.
        let set = json!({ "keys": [jwk(0), jwk(1), { "kty": "oct", "k": "AAAA", "kid": "shared" }] }).to_string();
        let judged = |kid: Value, signer: usize| {
            let header = json!({ "alg": "ES256", "kid": kid }).to_string();
            let signed = format!("{}.{}", part(&header), part("{}"));
            let signature = pairs[signer].sign(&random, signed.as_bytes()).unwrap();
            let token = format!("Bearer {signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()));
            let mut table = jwt("ES256");
            table["jwks"] = json!(KEY_SET);
            verify(scheme(table), SECRET, &token, b"{}", Some(Document::parse(set.as_bytes()).unwrap()))
        };
        let unknown = Err(Rejection::Unfetched { url: KEY_SET.parse().unwrap(), stale: true });
        assert_eq!(judged(json!("0"), 0), Ok(()));
        assert_eq!(judged(json!("1"), 1), Ok(()));
        assert_eq!(judged(Value::Null, 1), Ok(()));
        assert_eq!(judged(json!("0"), 1), Err(Rejection::Mismatch { secrets: 2 }));
        assert_eq!(judged(Value::Null, 2), Err(Rejection::Mismatch { secrets: 2 }));
        assert_eq!(judged(json!("2"), 2), unknown);
        assert_eq!(judged(json!(""), 0), unknown);
        assert_eq!(judged(json!("shared"), 0), unknown);
    }

    #[test]
    fn an_extension_that_must_be_understood_is_not() {
        for crit in [json!(["exp"]), json!(["b64"]), json!([]), json!("x"), json!(false)] {
            let header = json!({ "alg": "HS256", "crit": crit, "b64": false }).to_string();
            assert_eq!(judged(&token(&header, "{}")), ALGORITHM, "{header}");
        }
    }

    #[test]
    fn a_token_has_three_parts_in_base64url_without_padding() {
        let good = token(r#"{"alg":"HS256"}"#, "{}");
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        for two_or_less in [signed.replace('.', ""), String::from("."), format!("{header}.{signature}")] {
            assert_eq!(judged(&two_or_less), PARTS, "{two_or_less}");
        }
        // The parts are signed as they stand, so that only their form is wrong.
        let resigned = |signed: String| judged(&format!("{signed}.{}", mac(SECRET.as_bytes(), &signed)));
        assert_eq!(resigned(format!("{header}.{claims}.{claims}")), NOT_BASE64URL);
        assert_eq!(resigned(format!("{header}..{claims}")), NOT_BASE64URL);
        assert_eq!(resigned(format!("{header}.{claims}=")), NOT_BASE64URL);
        assert_eq!(resigned(format!("{header}=.{claims}")), NOT_BASE64URL);
        assert_eq!(resigned(format!("{header}.{claims} ")), NOT_BASE64URL);
        assert_eq!(resigned(format!("{header}.e31")), NOT_BASE64URL, "the last two bits say nothing");
        assert_eq!(judged(&format!("{good}.{signature}")), Err(Rejection::Mismatch { secrets: 1 }));
        let padded = BASE64URL.encode(&BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap());
        assert_eq!(judged(&format!("{signed}.{padded}")), NOT_BASE64URL);
        assert_eq!(judged(&format!("{signed}.")), Err(Rejection::Mismatch { secrets: 1 }));
        assert_eq!(judged(&format!("{signed}.{}", &signature[..signature.len() - 2])), NOT_BASE64URL);
    }

    #[test]
    fn a_token_without_measure_is_not_looked_at() {
        let long = token(r#"{"alg":"HS256"}"#, &json!({ "x": "y".repeat(48 * 1024) }).to_string());
        assert_eq!(judged(&long), Err(Rejection::Token("it is too long")));
        let deep = format!("{}1{}", r#"{"a":"#.repeat(5_000), "}".repeat(5_000));
        let not_claims = Err(Rejection::Token("its claims are not a JSON object"));
        assert_eq!(judged_claims(&deep), not_claims);
        for other in ["[]", "null", "1", "", "{", "{}{}"] {
            assert_eq!(judged_claims(other), not_claims, "{other}");
        }
    }

    #[test]
    fn a_token_is_good_from_its_first_second_to_its_last_give_or_take_the_tolerance() {
        let too_old = |by| Err(Rejection::TooOld { by: Duration::from_secs(by) });
        let too_new = |by| Err(Rejection::TooNew { by: Duration::from_secs(by) });
        for (claims, expected) in [
            (json!({ "exp": NOW - 60 }), Ok(())),
            (json!({ "exp": NOW - 61 }), too_old(1)),
            (json!({ "exp": 0 }), too_old(NOW - 60)),
            (json!({ "exp": NOW as f64 - 60.5 }), too_old(1)),
            (json!({ "nbf": NOW + 60 }), Ok(())),
            (json!({ "nbf": NOW + 61 }), too_new(1)),
            (json!({ "iat": NOW + 60 }), Ok(())),
            (json!({ "iat": NOW + 61 }), too_new(1)),
            (json!({ "iat": 0 }), Ok(())),
            (json!({ "exp": 999_999_999_999_999_u64 }), Ok(())),
            (json!({ "exp": 1_000_000_000_000_000_u64 }), NO_TIME),
            (json!({ "exp": u64::MAX }), NO_TIME),
            (json!({ "exp": -1 }), NO_TIME),
            (json!({ "exp": "1760000000" }), NO_TIME),
            (json!({ "exp": null }), NO_TIME),
            (json!({ "nbf": [NOW] }), NO_TIME),
            (json!({ "iat": true }), NO_TIME),
        ] {
            assert_eq!(judged_claims(&claims.to_string()), expected, "{claims}");
        }
        assert_eq!(judged_claims(r#"{"exp":1e999}"#), Err(Rejection::Token("its claims are not a JSON object")));
    }

    #[test]
    fn of_a_claim_that_is_there_twice_the_last_counts_for_everything() {
        // RFC 7519, section 4, allows that or a refusal. The signature covers both.
        let claims = |first: u64, last: u64| judged_claims(&format!(r#"{{"exp":{first},"exp":{last}}}"#));
        assert_eq!(claims(0, NOW), Ok(()));
        assert!(matches!(claims(NOW, 0), Err(Rejection::TooOld { .. })));
    }

    #[test]
    fn what_a_token_must_say_is_compared_letter_by_letter() {
        let mut table = jwt("HS256");
        table["jwt"] = json!({
            "algorithms": ["HS256"], "issuer": "https://sender.example", "audience": "{endpoint}", "max_age": "5m",
            "body_claim": { "claim": "hash", "encoding": "hex" },
        });
        let good = json!({
            "iss": "https://sender.example", "aud": "https://hooks.example.com/in", "iat": NOW - 300,
            "hash": HEXLOWER.encode(&Hash::Sha256.digest(&[b"{}"])),
        });
        let judged = |key: &str, value: Value| {
            let mut claims = good.clone();
            claims[key] = value;
            let token = format!("Bearer {}", token(r#"{"alg":"HS256"}"#, &claims.to_string()));
            verify(scheme(table.clone()), SECRET, &token, b"{}", None)
        };
        let hash = good["hash"].as_str().unwrap();
        let (issuer, audience) =
            (Err(Rejection::Token("it is from another issuer")), Err(Rejection::Token("it is for another audience")));
        assert_eq!(judged("other", json!(1)), Ok(()));
        assert_eq!(judged("aud", json!(["https://other.example", "https://hooks.example.com/in"])), Ok(()));
        for iss in [
            json!("https://sender.example/"),
            json!("HTTPS://sender.example"),
            json!(["https://sender.example"]),
            Value::Null,
        ] {
            assert_eq!(judged("iss", iss), issuer);
        }
        for aud in [
            json!("https://hooks.example.com/in2"),
            json!([]),
            json!({}),
            json!([["https://hooks.example.com/in"]]),
            Value::Null,
        ] {
            assert_eq!(judged("aud", aud), audience);
        }
        for wrong in [
            json!(hash.to_uppercase()),
            json!(&hash[..62]),
            json!(format!("{hash}00")),
            json!(""),
            json!([hash]),
            Value::Null,
        ] {
            assert_eq!(judged("hash", wrong), Err(Rejection::BodyHash));
        }
        assert_eq!(judged("iat", json!(NOW - 301)), Err(Rejection::TooOld { by: Duration::from_secs(1) }));
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove("iat");
        let token = format!("Bearer {}", token(r#"{"alg":"HS256"}"#, &claims.to_string()));
        let undated = Err(Rejection::Token("it does not say when it was issued"));
        assert_eq!(verify(scheme(table.clone()), SECRET, &token, b"{}", None), undated);
    }
}

mod shared_texts {
    use super::*;

    #[test]
    fn a_token_is_the_secret_to_the_last_letter() {
        let judged = |value: &str| {
            let table = json!({ "algorithm": "token", "header": "x-signature", "prefix": "Bearer " });
            verify(scheme(table), SECRET, value, b"", None)
        };
        let (mismatch, version) = (
            Err(Rejection::Mismatch { secrets: 1 }),
            Err(Rejection::UnknownVersion { place: "header:x-signature".to_owned(), prefix: "Bearer ".to_owned() }),
        );
        assert_eq!(judged(&format!("Bearer {SECRET}")), Ok(()));
        assert_eq!(judged(&format!("bearer {SECRET}")), version);
        assert_eq!(judged(SECRET), version);
        for wrong in ["", " ", &SECRET[1..], &SECRET[..SECRET.len() - 1], &SECRET.to_uppercase()] {
            assert_eq!(judged(&format!("Bearer {wrong}")), mismatch, "{wrong}");
        }
        for wrong in [format!("Bearer  {SECRET}"), format!("Bearer {SECRET} "), format!("Bearer {SECRET},{SECRET}")] {
            assert_eq!(judged(&wrong), mismatch, "{wrong}");
        }
    }

    #[test]
    fn basic_is_user_and_password_to_the_last_letter() {
        let basic = || scheme(json!({ "algorithm": "basic", "header": "x-signature" }));
        let judged = |value: &str| verify(basic(), "user:pass:word", value, b"", None);
        let of = |pair: &str| BASE64.encode(pair.as_bytes());
        let mismatch = Err(Rejection::Mismatch { secrets: 1 });
        for right in ["Basic", "basic", "BASIC"] {
            assert_eq!(judged(&format!("{right} {}", of("user:pass:word"))), Ok(()));
        }
        for wrong in ["user:pass", "user:pass:word ", "User:pass:word", ":pass:word", "user:", ":", "user"] {
            assert_eq!(judged(&format!("Basic {}", of(wrong))), mismatch, "{wrong}");
        }
        let code = of("user:pass:word");
        assert!(code.ends_with('='), "the example has padding to take away");
        for malformed in [
            code.clone(),
            format!("Bearer {code}"),
            format!("Basic{code}"),
            format!("Basic {}", code.trim_end_matches('=')),
            format!("Basic {code}="),
            "Basic user:pass:word".to_owned(),
        ] {
            assert!(matches!(judged(&malformed), Err(Rejection::Malformed { .. })), "{malformed}");
        }
        assert!(basic().key(&Secret::new("no colon")).is_err());
    }

    #[test]
    fn a_plain_hash_needs_the_secret_in_it() {
        let table = json!({ "algorithm": "plain-sha256", "header": "x-signature", "signed": "{secret}{body}" });
        let judged = |secret: &str, text: &str| {
            let hash = HEXLOWER.encode(&Hash::Sha256.digest(&[text]));
            verify(scheme(table.clone()), secret, &hash, b"body", None)
        };
        let mismatch = Err(Rejection::Mismatch { secrets: 1 });
        assert_eq!(judged("key", "keybody"), Ok(()));
        for wrong in ["body", "bodykey", "keybody ", "ke", ""] {
            assert_eq!(judged("key", wrong), mismatch, "{wrong}");
        }
        let without = json!({ "algorithm": "plain-sha256", "header": "x-signature", "signed": "{body}" });
        assert!(serde_json::from_value::<Scheme>(without).unwrap().validate(None).is_err());
        let beside = json!({ "algorithm": "hmac-sha256", "header": "x-signature", "signed": "{secret}{body}" });
        assert!(serde_json::from_value::<Scheme>(beside).unwrap().validate(None).is_err());
    }
}

mod small_keys {
    use ring::signature::{
        RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY,
    };

    use super::*;

    /// An RSA key of 1024 bits, and its signatures over `message`.
    const KEY: &str = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDOlFO39VnQzsvA5UvwobmwQhfLSWdWJxg7k/RJbNFFH6ydvoCBdVtJv0uQKjAbGalwlId5DcU4UkZLAGqXu2MigY0aCVckR9ItwqjvrllRrNXmPuX2+rwW3Z7EgXZbWjwhE34NamuVmds/Fl9wcJjYwZ6Yu3a90EpIlIeCTzfSiQIDAQAB";
    const SHA256: &str = "Z61GwYoxCZodR8rpDNUNrHosqPnfbZ7gNJx/NNpRMdqXKtfIhJM1pe2ReXGb6dT1OWkcb+8mpTZSBPBuIJLgUnPeuGwgU8lPr5jzNFBda78OvHc/K7o1ZPsECzTIGxqVlEFg7yZLRuD4Eg3jqEMmzQPfpicoLBzD8OuwiRgmk4U=";
    const SHA1: &str = "G1+z7JJb0i0VH+TLUshpCKTYRtePqIvqUf5mpaZFT6n9wnh8G06j0iexARlM5ChG8e5ybyPgIAe+5eov7/Sdoatpa06AzruQST4r+IvPWJ3TNHrJ0SknljGOqn0qz9xmMMMuBcqUblh+8vo/cb5YYQGT6XGZtxlINm5/cCviyso=";

    #[test]
    fn an_rsa_key_of_less_than_2048_bits_proves_nothing() {
        let key = PublicKey::parse(KEY.as_bytes()).unwrap();
        let PublicKey::Rsa(numbers) = &key else { panic!("{key:?}") };
        for (signing, code, legacy) in [
            (Signing::RsaSha256, SHA256, &RSA_PKCS1_1024_8192_SHA256_FOR_LEGACY_USE_ONLY),
            (Signing::RsaSha1, SHA1, &RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY),
        ] {
            let code = BASE64.decode(code.as_bytes()).unwrap();
            let right = ring::signature::UnparsedPublicKey::new(legacy, numbers);
            right.verify(b"message", &code).expect("only the size is wrong");
            assert!(!key.verifies(signing, b"message", &code), "{signing:?}");
            let refused = Key::public(&Secret::new(KEY), signing).err().unwrap();
            assert!(refused.contains("1024 bits"), "{refused}");
        }
    }

    #[test]
    fn an_rsa_key_that_is_large_enough_is_taken_in_each_form() {
        let jwk = |modulus: &[u8]| {
            let n = BASE64URL_NOPAD.encode(modulus);
            Key::public(&Secret::new(format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB"}}"#)), Signing::RsaSha256)
        };
        assert!(jwk(&[1; 256]).is_ok());
        assert!(jwk(&[&[0, 0], &[1; 254][..]].concat()).err().unwrap().contains("2032 bits"));
    }

    #[test]
    fn a_key_of_another_kind_proves_nothing() {
        let rsa = PublicKey::parse(KEY.as_bytes()).unwrap();
        for signing in [Signing::Ed25519, Signing::P256, Signing::P256Fixed] {
            assert!(!rsa.verifies(signing, b"message", b""), "{signing:?}");
        }
        for short in [PublicKey::Ed25519(vec![0; 31]), PublicKey::P256(vec![4; 64]), PublicKey::Rsa(Vec::new())] {
            for signing in [Signing::Ed25519, Signing::P256, Signing::P256Fixed, Signing::RsaSha1, Signing::RsaSha256] {
                assert!(!short.verifies(signing, b"message", &[0; 64]), "{short:?} {signing:?}");
            }
        }
    }
}
