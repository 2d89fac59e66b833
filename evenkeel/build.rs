//! Link options that make the image smaller: functions whose code is the same are kept once (identical code
//! folding), and relative relocations are packed. Both are the linker's, so a linker that does not know them
//! (`rust-lld` is cargo's own on x86-64 Linux) is not asked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let target = |what: &str| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    if target("OS") == "linux" && target("ENV") == "gnu" && target("ARCH") == "x86_64" {
        println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
