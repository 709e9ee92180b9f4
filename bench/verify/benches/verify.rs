//! What the engine adds to the bare code over the same bytes, for every preset with a shared key.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use hmac::{Hmac, KeyInit, Mac};
use hookbridge::signature::Algorithm;
use hookbridge_bench_verify::cases;
use sha1::Sha1;
use sha2::{Sha256, Sha512};

fn code<M: Mac + KeyInit + Clone>(key: &M, body: &[u8]) -> Vec<u8> {
    let mut mac = key.clone();
    mac.update(body);
    mac.finalize().into_bytes().to_vec()
}

fn verify(criterion: &mut Criterion) {
    let sha1 = Hmac::<Sha1>::new_from_slice(b"key").expect("HMAC takes any key");
    let sha256 = Hmac::<Sha256>::new_from_slice(b"key").expect("HMAC takes any key");
    let sha512 = Hmac::<Sha512>::new_from_slice(b"key").expect("HMAC takes any key");
    for case in cases(1024) {
        assert!(case.verify(), "{} refuses its own sample", case.name);
        let mut group = criterion.benchmark_group(case.name);
        group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400)).sample_size(20);
        let body = &case.sample.body;
        group.bench_function("bare", |bencher| match case.scheme.algorithm {
            Algorithm::HmacSha1 => bencher.iter(|| code(&sha1, black_box(body))),
            Algorithm::HmacSha512 => bencher.iter(|| code(&sha512, black_box(body))),
            _ => bencher.iter(|| code(&sha256, black_box(body))),
        });
        group.bench_function("verify", |bencher| bencher.iter(|| black_box(&case).verify()));
        group.finish();
    }
}

criterion_group!(benches, verify);
criterion_main!(benches);
