//! The API through a client that nobody here wrote, as those of Cloud Hypervisor are driven.

use cloud_hypervisor_client::apis::{DefaultApi, Error};
use cloud_hypervisor_client::models::console_mode::ConsoleMode;
use cloud_hypervisor_client::models::vm_state::VmState;
use cloud_hypervisor_client::models::{
    ConsoleConfig, CpusConfig, DiskConfig, MemoryConfig, PayloadConfig, SerialConfig, VmConfig,
};
use cloud_hypervisor_client::{SocketBasedApiClient, socket_based_api_client};
use guest_tests::{Artefact, MIB, Result, Tessera};

/// Runs the calls of a test on this thread.
fn with_client(
    vm: &Tessera,
    calls: impl AsyncFnOnce(&SocketBasedApiClient) -> Result<()>,
) -> Result<()> {
    // The socket is there once this was answered; the client does not wait for it.
    vm.api().get("vmm.ping")?.expect(200)?;
    let client = socket_based_api_client(vm.socket());
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(calls(&client))
}

/// What a client sends for a guest with a shell on the serial port.
fn config() -> Result<VmConfig> {
    let path = |artefact: Artefact| artefact.path().map(|path| path.display().to_string());
    let mut config = VmConfig::new(PayloadConfig {
        kernel: Some(path(Artefact::Vmlinux)?),
        initramfs: Some(path(Artefact::Initramfs)?),
        cmdline: Some("console=ttyS0 quiet".to_owned()),
        ..PayloadConfig::new()
    });
    config.cpus = Some(CpusConfig::new(1, 1));
    config.memory = Some(MemoryConfig::new(i64::try_from(128 * MIB)?));
    config.serial = Some(SerialConfig::new(ConsoleMode::Tty));
    config.console = Some(ConsoleConfig::new(ConsoleMode::Off));
    Ok(config)
}

/// The status of a call that was refused, and what it says.
fn refused<T>(result: Result<T, Error>) -> (u16, String) {
    match result {
        Ok(_) => (200, String::new()),
        Err(Error::Api(error)) => (error.code.as_u16(), error.body),
        Err(error) => (0, error.to_string()),
    }
}

async fn state(client: &SocketBasedApiClient) -> Result<VmState> {
    Ok(client.vm_info_get().await?.state)
}

#[test]
fn a_vm_lives_from_create_to_delete() -> Result<()> {
    let mut vm = Tessera::idle()?;
    with_client(&vm, async |client| {
        let ping = client.vmm_ping_get().await?;
        assert_eq!(ping.pid, Some(vm.process().id().into()));
        assert!(!ping.version.is_empty());

        client.create_vm(config()?).await?;
        assert_eq!(state(client).await?, VmState::Created);
        client.boot_vm().await?;
        vm.console().wait_for_shell()?;

        let info = client.vm_info_get().await?;
        assert_eq!(info.state, VmState::Running);
        assert_eq!(info.memory_actual_size, Some(i64::try_from(128 * MIB)?));
        assert_eq!(info.config.payload.cmdline.as_deref(), Some("console=ttyS0 quiet"));
        let devices = info.device_tree.unwrap_or_default();
        let address = devices.get("__rng").and_then(|device| device.pci_bdf.clone());
        assert!(address.is_some_and(|address| address.starts_with("0000:00:")), "{devices:?}");
        assert!(!client.vm_counters_get().await?.is_empty());

        client.pause_vm().await?;
        assert_eq!(state(client).await?, VmState::Paused);
        client.resume_vm().await?;
        assert_eq!(vm.shell("echo back")?, "back");
        client.power_button_vm().await?;
        client.vmm_nmi_put().await?;
        assert_eq!(vm.shell("dmesg | grep -c NMI:")?, "1");

        client.reboot_vm().await?;
        vm.console().wait_for_shell()?;
        client.shutdown_vm().await?;
        assert_eq!(state(client).await?, VmState::Created);
        client.boot_vm().await?;
        vm.console().wait_for_shell()?;
        client.delete_vm().await?;
        assert_eq!(refused(client.vm_info_get().await).0, 404);
        client.delete_vm().await?;
        client.shutdown_vmm().await?;
        Ok(())
    })?;
    vm.end()
}

#[test]
fn calls_in_the_wrong_state_are_refused() -> Result<()> {
    let vm = Tessera::idle()?;
    with_client(&vm, async |client| {
        // Without a VM.
        assert_eq!(refused(client.boot_vm().await).0, 404);
        assert_eq!(refused(client.vm_info_get().await).0, 404);
        assert_eq!(refused(client.vm_counters_get().await).0, 404);
        assert_eq!(refused(client.pause_vm().await).0, 404);
        assert_eq!(refused(client.shutdown_vm().await).0, 404);
        assert_eq!(refused(client.vmm_nmi_put().await).0, 404);
        assert_eq!(vm.api().put("vm.nmi")?.status, 404);

        // Created, not booted.
        client.create_vm(config()?).await?;
        assert_eq!(refused(client.create_vm(config()?).await).0, 409);
        for result in [
            client.pause_vm().await,
            client.resume_vm().await,
            client.shutdown_vm().await,
            client.reboot_vm().await,
            client.power_button_vm().await,
        ] {
            let (status, body) = refused(result);
            assert_eq!(status, 409, "{body}");
            assert!(body.starts_with(r#"["Error from API","#), "{body}");
        }

        assert_eq!(vm.api().put("vm.nmi")?.status, 409);

        // Running, then paused.
        client.boot_vm().await?;
        assert_eq!(refused(client.boot_vm().await).0, 409);
        assert_eq!(refused(client.resume_vm().await).0, 409);
        assert_eq!(refused(client.create_vm(config()?).await).0, 409);
        client.pause_vm().await?;
        assert_eq!(refused(client.pause_vm().await).0, 409);
        assert_eq!(refused(client.boot_vm().await).0, 409);
        // A paused VM can be shut down, and started afresh.
        client.shutdown_vm().await?;
        client.boot_vm().await?;
        assert_eq!(state(client).await?, VmState::Running);
        Ok(())
    })?;
    assert_eq!(vm.shell("echo well")?, "well");
    vm.power_off()
}

/// A configuration after `change`, which is to be refused with all of `messages`.
async fn is_refused(
    client: &SocketBasedApiClient,
    change: impl FnOnce(&mut VmConfig),
    messages: &[&str],
) -> Result<()> {
    let mut config = config()?;
    change(&mut config);
    let (status, body) = refused(client.create_vm(config).await);
    assert_eq!(status, 400, "{messages:?}: {body}");
    for message in messages {
        assert!(body.contains(message), "no {message:?} in {body}");
    }
    Ok(())
}

#[test]
fn configurations_that_cannot_work_are_refused_with_the_field() -> Result<()> {
    let mut vm = Tessera::idle()?;
    with_client(&vm, async |client| {
        let no_kernel = |config: &mut VmConfig| config.payload.kernel = Some("/no/kernel".into());
        is_refused(client, no_kernel, &["payload.kernel", "/no/kernel"]).await?;
        let no_cpus = |config: &mut VmConfig| config.cpus = Some(CpusConfig::new(0, 0));
        is_refused(client, no_cpus, &["cpus.boot_vcpus"]).await?;
        let odd = |config: &mut VmConfig| config.memory = Some(MemoryConfig::new(4097));
        is_refused(client, odd, &["memory.size"]).await?;
        let two = |config: &mut VmConfig| {
            let disk = |path: &str| DiskConfig { path: Some(path.into()), ..DiskConfig::new() };
            config.disks = Some(vec![disk("/dev/null"), disk("/no/disk")]);
        };
        is_refused(client, two, &["disks[0].path", "disks[1].path", "/no/disk"]).await?;
        // Nothing of all that is left behind.
        assert_eq!(refused(client.vm_info_get().await).0, 404);
        client.shutdown_vmm().await?;
        Ok(())
    })?;
    vm.end()
}

#[test]
fn a_boot_that_fails_can_be_put_right() -> Result<()> {
    let vm = Tessera::idle()?;
    let kernel = vm.folder().join("kernel");
    std::fs::write(&kernel, "this is no kernel\n".repeat(1000))?;
    with_client(&vm, async |client| {
        let mut bad = config()?;
        bad.payload.kernel = Some(kernel.display().to_string());
        client.create_vm(bad).await?;
        let (status, body) = refused(client.boot_vm().await);
        assert_eq!(status, 500, "{body}");
        assert!(body.contains("neither an ELF vmlinux nor a bzImage"), "{body}");
        assert_eq!(state(client).await?, VmState::Created);
        client.delete_vm().await?;
        client.create_vm(config()?).await?;
        client.boot_vm().await?;
        Ok(())
    })?;
    assert_eq!(vm.shell("echo right")?, "right");
    vm.power_off()
}
