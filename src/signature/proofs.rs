//! Proofs of the engine: what it must not take, tried out rather than argued.
//!
//! [`flips`] turns every genuine request of the project's tests into forged ones, one bit at a time;
//! [`wycheproof`] runs the vectors of that project through the functions that compare and verify; [`edges`]
//! tries what is said to go wrong with tokens, passwords and small keys; [`round_trip`] holds signing against
//! verification and against the providers' own requests. That no input makes it panic is tried
//! where the fuzz targets' doors are, in `crate::fuzzing`.

mod edges;
mod flips;
mod requests;
mod round_trip;
mod spots;
mod wycheproof;
