//! The pure parts of the hot path beside verification.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use hookbridge::measures;

fn parts(criterion: &mut Criterion) {
    measure(criterion, "gateway: name an event", measures::name_an_event());
    measure(criterion, "courier: understand a message", measures::understand_a_message());
    measure(criterion, "courier: route a message", measures::route_a_message());
    measure(criterion, "courier: make a request", measures::make_a_request());
    measure(criterion, "courier: decide a retry", measures::decide_a_retry());
    measure(criterion, "courier: apply an update", measures::apply_an_update());
}

fn measure(criterion: &mut Criterion, name: &str, part: impl Fn() -> bool) {
    assert!(part(), "{name} does not do what is measured");
    let mut group = criterion.benchmark_group("parts");
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(50);
    group.bench_function(name, |bencher| bencher.iter(|| black_box(&part)()));
    group.finish();
}

criterion_group!(benches, parts);
criterion_main!(benches);
